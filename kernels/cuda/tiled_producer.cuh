#pragma once

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tiled_shape.cuh"

namespace inflight::cuda::tiled_linear_kernels {

// One thread that copies the tiles' chunks of x and weight in, as far ahead as stages are free, into the next tile too
// while the last one is stored. In a cluster each block copies a half of the weight's tile to both.
template <typename S>
class Producer {
 public:
  __device__ Producer(const CUtensorMap& x, const CUtensorMap& weight, const Args& args, Shared<S>& shared)
      : x_(x), weight_(weight), args_(args), shared_(shared) {}

  __device__ void run() {
    // The weight needs no earlier kernel: a ring full of it is on its way before x may be read.
    Cursor at(args_), first = at;
    for (int stage = 0; stage < S::kStages && !at.done(); ++stage, at.advance()) {
      barrier_expect(&shared_.full[stage], S::kStageBytes);
      copy_weight(stage, at);
    }
    wait_for_previous();
    for (int stage = 0; stage < S::kStages && !first.done(); ++stage, first.advance()) copy_x(stage, first);
    Ring<S::kStages> ring;
    for (; !at.done(); at.advance(), ring.advance()) {
      const int stage = ring.stage();
      barrier_wait(&shared_.empty[stage], ring.parity());
      barrier_expect(&shared_.full[stage], S::kStageBytes);
      copy_x(stage, at);
      copy_weight(stage, at);
    }
    let_next_start();
  }

 private:
  struct Cursor {
    __device__ explicit Cursor(const Args& args) : walk(args), tile(walk.tile()), chunks(args.k / kChunk) {}
    __device__ bool done() const { return walk.done(); }
    __device__ void advance() {
      if (++chunk < chunks) return;
      chunk = 0;
      walk.advance();
      if (!done()) tile = walk.tile();
    }
    TileWalk<S> walk;
    Tile tile;
    int chunk = 0, chunks;
  };

  __device__ void copy_x(int stage, const Cursor& at) {
    copy_box(shared_.x[stage], x_, &shared_.full[stage], at.chunk * kChunk, at.tile.row);
  }

  __device__ void copy_weight(int stage, const Cursor& at) {
    if constexpr (S::kCluster == 2) {
      copy_weight_half(stage, at, static_cast<int>(blockIdx.x % 2));
    } else {
      copy_weight_half(stage, at, 0);
      copy_weight_half(stage, at, 1);
    }
  }

  __device__ void copy_weight_half(int stage, const Cursor& at, int half) {
    unsigned char* const to = shared_.weight[stage] + half * (S::kColumns / 2 * kRowBytes);
    const int row = at.tile.column + half * (S::kGated ? args_.n : S::kColumns / 2);
    if constexpr (S::kCluster == 2) {
      copy_box_to(0b11, to, weight_, &shared_.full[stage], at.chunk * kChunk, row);
    } else {
      copy_box(to, weight_, &shared_.full[stage], at.chunk * kChunk, row);
    }
  }

  const CUtensorMap &x_, &weight_;
  const Args& args_;
  Shared<S>& shared_;
};

}  // namespace inflight::cuda::tiled_linear_kernels
