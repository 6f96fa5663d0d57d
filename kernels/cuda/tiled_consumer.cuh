#pragma once

#include "kernels/cuda/activation_functions.cuh"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quad_transpose.cuh"
#include "kernels/cuda/tiled_shape.cuh"

namespace inflight::cuda::tiled_linear_kernels {

// One warpgroup: 64 rows of each tile. Each thread has parts of two rows, 8 apart. A tile's sums are rounded as soon as
// they are whole; the activation and the stores come while the next tile's products are under way.
template <typename S>
class Consumer {
 public:
  __device__ Consumer(const Args& args, Shared<S>& shared)
      : args_(args),
        shared_(shared),
        warpgroup_(__shfl_sync(0xffffffffu, threadIdx.x / 128, 0) - 1),
        tile_{args.m, 0} {}

  __device__ void run() {
    wait_for_previous();
    for (TileWalk<S> walk(args_); !walk.done(); walk.advance()) {
      multiply();
      const Tile tile = walk.tile();  // its divisions, too, while the last products are under way
      end_products();
      tile_ = tile;
      if (!S::kGated && args_.float_out) {
        store_floats();
        tile_.row = args_.m;  // nothing is left to store
      } else if (!S::kGated && args_.bias) {
        round_with_bias();
      } else {
        round();
      }
    }
    store_groups();
  }

 private:
  static constexpr int kSums = S::kColumns / 2;
  static constexpr int kGroups = S::kOutColumns / 32;

  // All products of the tile, the last still under way, and meanwhile the stores of the tile before.
  __device__ __forceinline__ void multiply() {
    const int chunks = args_.k / kChunk;
    if (chunks > kGroups) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        begin_chunk(group);
        store_group(group);
        end_chunk(group);
      }
      multiply_from(kGroups, chunks);
    } else {
      store_groups();
      multiply_from(0, chunks);
    }
  }

  __device__ __forceinline__ void multiply_from(int chunk, int chunks) {
#pragma unroll 1
    for (; chunk < chunks; ++chunk) {
      begin_chunk(chunk);
      end_chunk(chunk);
    }
  }

  __device__ __forceinline__ void end_products() {
    products_wait<0>();
    pin(sum_);
    release();
  }

  __device__ __forceinline__ void begin_chunk(int chunk) {
    const int stage = ring_.stage();
    barrier_wait(&shared_.full[stage], ring_.parity());
    ring_.advance();
    const uint64_t x = panel_descriptor(shared_.x[stage] + warpgroup_ * 64 * kRowBytes, 0);
    const uint64_t weight = panel_descriptor(shared_.weight[stage], 0);
    products_begin();
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k)
      Product<S::kColumns>::rows_by_rows(sum_, advance(x, k * 32), advance(weight, k * 32), chunk > 0 || k > 0);
    products_commit();
  }

  // One chunk's products are under way while the next ones begin; a stage is free once they are done.
  __device__ __forceinline__ void end_chunk(int chunk) {
    products_wait<1>();
    if (chunk > 0) release();
  }

  __device__ __forceinline__ int row_of(int r) const {
    return tile_.row + static_cast<int>(threadIdx.x - 128) / 32 * 16 + threadIdx.x % 32 / 4 + 8 * r;
  }

  // Of columns 8 * i and on, this thread's two; zeros without a bias.
  __device__ __forceinline__ uint32_t bias_pair(int i) const {
    const int column = tile_.column + i * 8 + threadIdx.x % 4 * 2;
    return args_.bias && column < args_.n ? __ldg(reinterpret_cast<const uint32_t*>(args_.bias + column)) : 0;
  }

  __device__ __forceinline__ void round_with_bias() {
#pragma unroll
    for (int i = 0; i < S::kColumns / 8; ++i) {
      const uint32_t bias = bias_pair(i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* const pair = sum_ + 4 * i + 2 * r;
        rounded_[2 * i + r] = to_bf16_pair(pair[0] + bf16_low(bias), pair[1] + bf16_high(bias));
      }
    }
  }

  __device__ __forceinline__ void round() {
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) rounded_[i] = to_bf16_pair(sum_[2 * i], sum_[2 * i + 1]);
  }

  __device__ __forceinline__ void store_floats() const {
    const int column = tile_.column + threadIdx.x % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row_of(r) >= args_.m) continue;
      float* const out = static_cast<float*>(args_.out) + static_cast<int64_t>(row_of(r)) * args_.n + column;
#pragma unroll
      for (int i = 0; i < S::kColumns / 8; ++i) {
        const uint32_t bias = bias_pair(i);
        const float* const pair = sum_ + 4 * i + 2 * r;
        if (column + i * 8 < args_.n)
          *reinterpret_cast<float2*>(out + i * 8) = make_float2(pair[0] + bf16_low(bias), pair[1] + bf16_high(bias));
      }
    }
  }

  __device__ __forceinline__ void store_groups() {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) store_group(group);
  }

  // 32 columns of both rows.
  __device__ __forceinline__ void store_group(int group) {
    uint32_t words[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i % 2][i / 2] = rounded_[group * 8 + i];
    if constexpr (S::kGated) {
      switch (args_.activation) {
        case Activation::kSilu: gate<Silu>(words, group); break;
        case Activation::kGelu: gate<Gelu>(words, group); break;
        case Activation::kGeluTanh: gate<GeluTanh>(words, group); break;
        case Activation::kRelu: gate<Relu>(words, group); break;
      }
    }
    store_words(words, group);
  }

  // Both halves were rounded before they are multiplied, as separate ops would.
  template <typename Function>
  __device__ __forceinline__ void gate(uint32_t (&words)[2][4], int group) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t& word = words[i % 2][i / 2];
      const uint32_t up = rounded_[kSums / 4 + group * 8 + i];
      word = to_bf16_pair(Function::apply(bf16_low(word)) * bf16_low(up),
                          Function::apply(bf16_high(word)) * bf16_high(up));
    }
  }

  __device__ __forceinline__ void store_words(uint32_t (&words)[2][4], int group) const {
    uint4* to[2];
    uint4 old[2]{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to[r] = place_of(r, group);
      if (!S::kGated && args_.add && to[r]) old[r] = *to[r];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      transpose_quad(words[r]);
      if (!S::kGated && args_.add) add(words[r], old[r]);
      if (to[r]) *to[r] = make_uint4(words[r][0], words[r][1], words[r][2], words[r][3]);
    }
  }

  // Where this thread's 8 columns of the group go, null outside out: N is a multiple of 8.
  __device__ __forceinline__ uint4* place_of(int r, int group) const {
    const int row = row_of(r), column = tile_.column + group * 32 + threadIdx.x % 4 * 8;
    uint16_t* const out = static_cast<uint16_t*>(args_.out) + static_cast<int64_t>(row) * args_.n + column;
    return row < args_.m && column < args_.n ? reinterpret_cast<uint4*>(out) : nullptr;
  }

  static __device__ __forceinline__ void add(uint32_t (&words)[4], const uint4& old) {
    const uint32_t summands[4] = {old.x, old.y, old.z, old.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = to_bf16_pair(bf16_low(words[i]) + bf16_low(summands[i]), bf16_high(words[i]) + bf16_high(summands[i]));
  }

  // Tells every block that copies into the stage.
  __device__ __forceinline__ void release() {
    uint64_t* const empty = &shared_.empty[released_.stage()];
    released_.advance();
    const int lane = threadIdx.x % 32;
    if constexpr (S::kCluster > 1) {
      if (lane < S::kCluster) barrier_arrive_at(empty, lane);
    } else {
      if (lane == 0) barrier_arrive(empty);
    }
  }

  const Args& args_;
  Shared<S>& shared_;
  int warpgroup_;                  // in a uniform register, as the products' operands are
  Tile tile_;                      // whose sums are to be stored
  float sum_[kSums];               // of the tile at work
  uint32_t rounded_[kSums / 2]{};  // of the tile before, two neighbouring columns each
  Ring<S::kStages> ring_, released_;
};

}  // namespace inflight::cuda::tiled_linear_kernels
