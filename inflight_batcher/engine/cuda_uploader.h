#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "inflight_batcher/engine/weight_parts.h"

namespace inflight {

/// Carries weights from their mapped files to the GPU as bfloat16: several threads convert or copy pieces into
/// page-locked memory while what they did before is on its way.
class CudaUploader {
 public:
  CudaUploader(int device, int threads);
  ~CudaUploader();
  CudaUploader(const CudaUploader&) = delete;
  CudaUploader& operator=(const CudaUploader&) = delete;

  /// The whole part, to device memory. Returns at once; the file must stay mapped until finish().
  void add(const WeightPart& part, std::byte* destination);

  /// Waits until all of it has arrived; nothing can be added afterwards. Throws what went wrong first.
  void finish();

 private:
  struct Piece {
    WeightPart part;
    int64_t first = 0, last = 0;  // rows
    std::byte* destination = nullptr;
  };

  void work(int device);
  bool take(Piece& piece);
  void upload_pieces(int device);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Piece> pieces_;
  bool closed_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace inflight
