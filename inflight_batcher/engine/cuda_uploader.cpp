#include "inflight_batcher/engine/cuda_uploader.h"

#include <algorithm>

#include "inflight_batcher/engine/cuda_memory.h"

namespace inflight {

namespace {

constexpr int64_t kPieceBytes = 8 << 20;  // two a thread: enough of them in flight fill the bus

int64_t row_bytes(const WeightPart& part) { return part.columns() * static_cast<int64_t>(size_of(DType::kBfloat16)); }

}  // namespace

CudaUploader::CudaUploader(int device, int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this, device] { work(device); });
}

CudaUploader::~CudaUploader() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    pieces_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

void CudaUploader::add(const WeightPart& part, std::byte* destination) {
  const int64_t bytes = row_bytes(part);
  check(bytes <= kPieceBytes, ErrorCode::kUnsupported, "a weight's row of ", part.columns(),
        " numbers is longer than a piece of ", kPieceBytes, " bytes");
  const int64_t rows = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(bytes, 1));
  std::lock_guard lock(mutex_);
  for (int64_t first = 0; first < part.rows(); first += rows)
    pieces_.push_back({part, first, std::min(part.rows(), first + rows), destination + first * bytes});
  wake_.notify_all();
}

void CudaUploader::finish() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
  if (failure_) std::rethrow_exception(failure_);
}

bool CudaUploader::take(Piece& piece) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return closed_ || !pieces_.empty(); });
  if (pieces_.empty() || failure_) return false;
  piece = pieces_.front();
  pieces_.pop_front();
  return true;
}

void CudaUploader::work(int device) {
  try {
    upload_pieces(device);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void CudaUploader::upload_pieces(int device) {
  cuda::check_cuda(cudaSetDevice(device), "the CUDA device cannot be taken");
  const PinnedMemory staging[2] = {PinnedMemory(kPieceBytes), PinnedMemory(kPieceBytes)};
  CudaEvent sent[2];
  const CudaStream stream;
  Piece piece;
  for (int turn = 0; take(piece); turn ^= 1) {
    sent[turn].wait();
    copy_rows(piece.part, piece.first, piece.last, DType::kBfloat16, staging[turn].data());
    const auto bytes = static_cast<size_t>((piece.last - piece.first) * row_bytes(piece.part));
    cuda::check_cuda(cudaMemcpyAsync(piece.destination, staging[turn].data(), bytes, cudaMemcpyHostToDevice, stream),
                     "an upload");
    sent[turn].record(stream);
  }
  cuda::check_cuda(cudaStreamSynchronize(stream), "the uploads");
}

}  // namespace inflight
