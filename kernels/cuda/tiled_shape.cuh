#pragma once

#include "inflight/ops/activation.h"
#include "kernels/cuda/wgmma.cuh"

/// What the roles of a tiled product's block share.
namespace inflight::cuda::tiled_linear_kernels {

constexpr int kChunk = 64;      // columns of K in a stage
constexpr int kRowBytes = 128;  // of a stage's row: the copy engine's widest swizzle

struct Args {
  const uint16_t* bias;  // [N] or null; null if gated
  void* out;             // [M, N] bfloat16, or float32
  int m, n, k;
  int column_tiles;
  int row_units;  // of kCluster tiles one above the other, one for each block of a cluster
  int band;       // row units whose tiles follow one another before those of the next band
  Activation activation;
  bool float_out;
  bool add;  // the rounded product to what out holds; neither gated nor float32
};

// The sizes of one kernel: rows of x and of the weight in a tile, blocks of a cluster. A gated tile's weight rows are
// one half gate, one half up, of the same outputs.
template <int kRows_, int kColumns_, int kCluster_, bool kGated_>
struct Shape {
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kCluster = kCluster_;
  static constexpr bool kGated = kGated_;
  static constexpr int kOutColumns = kGated ? kColumns / 2 : kColumns;
  static constexpr int kWarpgroups = kRows / 64;  // that multiply
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBlocksPerSm = kWarpgroups == 1 ? 2 : 1;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = kWarpgroups == 1 ? 216 : 240;
  static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
  static constexpr int kAlignment = 1024;  // of the swizzle's pattern
  static constexpr int kMostStages = 8;
  static constexpr int kSharedBudget = kBlocksPerSm == 1 ? 227 * 1024 : 112 * 1024;
  static constexpr int kFitting = (kSharedBudget - kAlignment - 2 * 8 * kMostStages) / kStageBytes;
  static constexpr int kStages = kFitting < kMostStages ? kFitting : kMostStages;
  static_assert(kRows % 64 == 0 && kOutColumns % 32 == 0 && kStages >= 3);
};

template <typename S>
struct Shared {
  alignas(1024) unsigned char x[S::kStages][S::kRows * kRowBytes];
  alignas(1024) unsigned char weight[S::kStages][S::kColumns * kRowBytes];
  uint64_t full[S::kStages], empty[S::kStages];
};

template <typename S>
__device__ void init_barriers(Shared<S>& shared) {
  for (int stage = 0; stage < S::kStages; ++stage) {
    barrier_init(&shared.full[stage], 1);
    barrier_init(&shared.empty[stage], 4 * S::kWarpgroups * S::kCluster);  // every warp that reads what it holds
  }
  barrier_init_fence();
}

// Where a tile begins: its first row of x, its first column of out.
struct Tile {
  int row, column;
};

// The tiles of one block, one after another. Those at work at a time form about a square, and all blocks of a cluster
// take the same columns.
template <typename S>
class TileWalk {
 public:
  __device__ explicit TileWalk(const Args& args) : args_(args), next_(blockIdx.x / S::kCluster) {}

  __device__ bool done() const { return next_ >= args_.row_units * args_.column_tiles; }
  __device__ void advance() { next_ += gridDim.x / S::kCluster; }
  __device__ Tile tile() const {
    const int first_unit = next_ / (args_.band * args_.column_tiles) * args_.band;
    const int height = min(args_.band, args_.row_units - first_unit), rest = next_ - first_unit * args_.column_tiles;
    const int unit = first_unit + rest % height;
    return {static_cast<int>(unit * S::kCluster + blockIdx.x % S::kCluster) * S::kRows, rest / height * S::kOutColumns};
  }

 private:
  const Args& args_;
  int next_;
};

}  // namespace inflight::cuda::tiled_linear_kernels
