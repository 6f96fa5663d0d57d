#pragma once

#include "inflight/ops/activation.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/skinny_ptx.cuh"

namespace inflight::cuda {

struct SkinnyKernelArgs {
  const uint16_t* bias;  // [N] or null
  void* out;             // [M, N]
  int m, n, k;
  int gate_rows;  // N of a gated product: the distance from a gate's row to its up row; 0 otherwise
  int tiles;
  int split;  // blocks of a cluster that share a tile's sum over K
  Activation activation;
  bool float_out;
  bool add;  // to what out holds
};

__device__ inline float activate(Activation activation, float x) {
  constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
  switch (activation) {
    case Activation::kSilu: return __fdividef(x, 1.0f + __expf(-x));
    case Activation::kGelu: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::kGeluTanh: return __fdividef(x, 1.0f + __expf(-kTwoSqrtTwoOverPi * (x + 0.044715f * x * x * x)));
    case Activation::kRelu: return x < 0.0f ? 0.0f : x;
  }
  return x;
}

/// The shape of one kernel: kTokens rows of x (8, or a multiple of 16) against tiles of kRows rows of the weight.
/// Eight warps multiply, one copies. A stage of the ring holds kChunk columns of both; each of kSlices warps takes 32
/// of its columns, and kGroups warps share those columns, each for its part of the rows.
template <int kTokens, int kRows>
struct SkinnyShape {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = (kWarps + 1) * 32;
  static constexpr int kGroups = kTokens >= 32 || kRows >= 48 ? 2 : 1;
  static constexpr int kSlices = kWarps / kGroups;
  static constexpr int kChunk = kSlices * 32;
  static constexpr int kBoxColumns = 64;  // 128 bytes: a row of the copy engine's widest swizzle
  static constexpr int kBoxes = kChunk / kBoxColumns;
  static constexpr int kWeightBytes = kRows * kChunk * 2;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kChunk * 2;
  static constexpr int kTokenTiles = (kTokens + 15) / 16;
  static constexpr int kRowTiles = kRows / kGroups / 8;
  static constexpr int kSumStride = kRows + 8;  // floats; spreads a fragment over the banks
  static constexpr int kSlotFloats = kTokens * kSumStride;
  // All slices lay down their sums at once where there is room, else half of them after adding the other half's.
  static constexpr int kSlots = kTokens >= 32 || kRows >= 64 ? kSlices / 2 : kSlices;
  static constexpr int kSumBytes = kSlots * kSlotFloats * 4;
  static constexpr int kMaxStages = 12;
  static constexpr int kBarrierBytes = 2 * kMaxStages * 8;
  static constexpr int kAlignment = 1024;  // of the swizzle's pattern
  // Two blocks an SM: as one kernel's blocks end, the next one's take their places and begin to read their weights.
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kSharedBudget = 112 * 1024;
  static constexpr int kFitting = (kSharedBudget - kSumBytes - kBarrierBytes - kAlignment) / kStageBytes;
  static constexpr int kStages = kFitting < kMaxStages ? kFitting : kMaxStages;
  static constexpr int kSharedBytes = kStages * kStageBytes + kSumBytes + kBarrierBytes + kAlignment;
  static_assert(kRows % (8 * kGroups) == 0 && kStages >= 2);
};

/// Where the ring is: its next stage and the parity of that stage's barriers.
struct SkinnyRing {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Walks what one block sums: of every tile_step-th tile, the chunks of K from first_chunk on.
struct SkinnyCursor {
  int tile, chunk, tiles, tile_step, first_chunk, end_chunk;
  __device__ SkinnyCursor(const SkinnyKernelArgs& args, int chunk_columns) : tiles(args.tiles) {
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    const int chunks = (args.k + chunk_columns - 1) / chunk_columns;
    const bool whole = args.split == 1;  // spares the divisions
    const int rank = whole ? 0 : block % args.split;
    tile = whole ? block : block / args.split;
    tile_step = whole ? blocks : blocks / args.split;
    first_chunk = whole ? 0 : chunks * rank / args.split;
    end_chunk = whole ? chunks : chunks * (rank + 1) / args.split;
    chunk = first_chunk;
    if (first_chunk == end_chunk) tile = tiles;
  }
  __device__ bool done() const { return tile >= tiles; }
  __device__ void next() {
    if (++chunk < end_chunk) return;
    chunk = first_chunk;
    tile += tile_step;
  }
};

/// out = x · weightᵀ (+ bias), or the gated product, whose tiles are kRows / 2 gate rows and the same up rows. The maps
/// are of boxes of 64 columns: of the weight's rows of a tile (or of half of it), and of all rows of x in kBoxes boxes.
/// Grid: clusters of `split` blocks; with split > 1 a cluster takes one tile. K is a multiple of 64.
template <int kTokens, int kRows>
__global__ void __launch_bounds__(SkinnyShape<kTokens, kRows>::kThreads, SkinnyShape<kTokens, kRows>::kBlocksPerSm)
    skinny_kernel(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap x,
                  const SkinnyKernelArgs args) {
  using Shape = SkinnyShape<kTokens, kRows>;
  let_next_start();
  extern __shared__ uint8_t unaligned[];
  const uint32_t ring = (shared_address(unaligned) + Shape::kAlignment - 1) / Shape::kAlignment * Shape::kAlignment;
  const uint32_t barriers = ring + Shape::kStages * Shape::kStageBytes;
  float* const sums =
      reinterpret_cast<float*>(unaligned + (barriers - shared_address(unaligned)) + Shape::kBarrierBytes);
  const auto full = [&](int stage) { return barriers + stage * 8; };
  const auto empty = [&](int stage) { return barriers + (Shape::kMaxStages + stage) * 8; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int out_rows = args.gate_rows ? kRows / 2 : kRows;
  const SkinnyCursor begin(args, Shape::kChunk);

  const uint64_t weight_policy = evict_first_policy(), x_policy = evict_last_policy();
  const auto copy_weight = [&](int stage, const SkinnyCursor& at) {
    const uint32_t to = ring + stage * Shape::kStageBytes;
#pragma unroll
    for (int box = 0; box < Shape::kBoxes; ++box) {
      const uint32_t there = to + box * kRows * 128;
      const int column = at.chunk * Shape::kChunk + box * Shape::kBoxColumns, row = at.tile * out_rows;
      copy_box(there, weight, column, row, full(stage), weight_policy);
      if (args.gate_rows)
        copy_box(there + kRows / 2 * 128, weight, column, args.gate_rows + row, full(stage), weight_policy);
    }
  };
  const auto copy_x = [&](int stage, const SkinnyCursor& at) {
    copy_group(ring + stage * Shape::kStageBytes + Shape::kWeightBytes, x, at.chunk * Shape::kBoxes, full(stage),
               x_policy);
  };

  // The weight needs no earlier kernel: a ring full of it is on its way before x may be read.
  SkinnyCursor ahead = begin;
  if (threadIdx.x == Shape::kWarps * 32) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), Shape::kWarps);
    }
    barrier_init_fence();
    for (int stage = 0; stage < Shape::kStages && !ahead.done(); ++stage, ahead.next()) {
      barrier_expect(full(stage), Shape::kStageBytes);
      copy_weight(stage, ahead);
    }
  }
  __syncthreads();
  wait_for_previous();

  if (warp == Shape::kWarps) {
    if (lane == 0) {
      SkinnyCursor first = begin;
      for (int stage = 0; stage < Shape::kStages && !first.done(); ++stage, first.next()) copy_x(stage, first);
      for (SkinnyRing at; !ahead.done(); ahead.next(), at.advance(Shape::kStages)) {
        barrier_wait(empty(at.stage), at.parity);
        barrier_expect(full(at.stage), Shape::kStageBytes);
        copy_weight(at.stage, ahead);
        copy_x(at.stage, ahead);
      }
    }
    __syncwarp();
    if (args.split > 1) {
      sync_cluster();
      end_cluster();
    }
    return;
  }

  const int slice = warp % Shape::kSlices, group = warp / Shape::kSlices;
  const int box = slice / 2, first_unit = slice % 2 * 4;  // a unit is 16 bytes, 8 columns
  const int swizzle = lane % 8;                           // a row's place in its group of 8
  const uint32_t weight_at =
      box * kRows * 128 + (group * Shape::kRowTiles * 8 + lane % 8) * 128 + (((first_unit + lane / 8) ^ swizzle) << 4);
  // For 8 tokens: units 0 to 3 of rows 0 to 7. For 16: rows 0 to 15 of units 0 and 1, then of 2 and 3.
  const int x_row = kTokens == 8 ? lane % 8 : lane % 16;
  const int x_unit = first_unit + (kTokens == 8 ? lane / 8 : lane / 16);
  const uint32_t x_at = Shape::kWeightBytes + box * kTokens * 128 + x_row * 128;
  const auto load_x = [&](uint32_t stage, uint32_t (&a)[Shape::kTokenTiles][2][4]) {
    if constexpr (kTokens == 8) {
      uint32_t units[4];
      load_matrices(units, stage + x_at + ((x_unit ^ swizzle) << 4));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[0][half][0] = units[2 * half], a[0][half][2] = units[2 * half + 1];
        a[0][half][1] = a[0][half][3] = 0;  // the upper eight tokens of the tensor cores' sixteen
      }
    } else {
#pragma unroll
      for (int t = 0; t < Shape::kTokenTiles; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          load_matrices(a[t][half], stage + x_at + t * 16 * 128 + (((x_unit + 2 * half) ^ swizzle) << 4));
    }
  };

  SkinnyRing at;
  for (int tile = begin.tile; tile < args.tiles; tile += begin.tile_step) {
    // What the sum is added to, read while the weight streams in: the thread's first output, of few rows its only one.
    const int rank = args.split == 1 ? 0 : static_cast<int>(blockIdx.x) % args.split;
    const int first_token = rank * Shape::kWarps + warp;
    const auto old_of = [&](int token, int row) {
      const bool there = args.add && token < args.m && row < out_rows && tile * out_rows + row < args.n;
      const int64_t at = static_cast<int64_t>(token) * args.n + tile * out_rows + row;
      return there ? bf16_low(static_cast<const uint16_t*>(args.out)[at]) : 0.0f;
    };
    const float first_old = old_of(first_token, lane);
    float acc[Shape::kTokenTiles][Shape::kRowTiles][4] = {};
    for (int chunk = begin.first_chunk; chunk < begin.end_chunk; ++chunk) {
      barrier_wait(full(at.stage), at.parity);
      const uint32_t stage = ring + at.stage * Shape::kStageBytes;
      uint32_t a[Shape::kTokenTiles][2][4];
      load_x(stage, a);
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        uint32_t b[4];
        load_matrices(b, stage + weight_at + r * 8 * 128);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int t = 0; t < Shape::kTokenTiles; ++t)
            multiply_add(acc[t][r], a[t][half], b[2 * half], b[2 * half + 1]);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty(at.stage));
      at.advance(Shape::kStages);
    }

    // The slices' sums, added in one order whatever the batch: floats [slot, token, row].
    const auto for_each_pair = [&](int slot, auto&& use) {
      float* const to =
          sums + slot * Shape::kSlotFloats + group * Shape::kRowTiles * 8 + lane / 4 * Shape::kSumStride + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < Shape::kTokenTiles; ++t)
#pragma unroll
        for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
          for (int half = 0; half < (kTokens > 8 ? 2 : 1); ++half)
            use(reinterpret_cast<float2&>(to[(t * 16 + half * 8) * Shape::kSumStride + r * 8]), acc[t][r][2 * half],
                acc[t][r][2 * half + 1]);
    };
    const auto store = [](float2& pair, float& low, float& high) { pair = make_float2(low, high); };
    const auto add = [](float2& pair, float& low, float& high) { low += pair.x, high += pair.y; };
    if constexpr (Shape::kSlots < Shape::kSlices) {
      if (slice >= Shape::kSlots) for_each_pair(slice - Shape::kSlots, store);
      sync_threads<1, Shape::kWarps * 32>();
      if (slice < Shape::kSlots) {
        for_each_pair(slice, add);
        for_each_pair(slice, store);
      }
    } else {
      for_each_pair(slice, store);
    }
    sync_threads<1, Shape::kWarps * 32>();

    const auto sum_slots = [&](int token, int row) {
      float total = 0.0f;
#pragma unroll
      for (int slot = 0; slot < Shape::kSlots; ++slot)
        total += sums[slot * Shape::kSlotFloats + token * Shape::kSumStride + row];
      return total;
    };
    if (args.split > 1) {
      for (int token = warp; token < args.m; token += Shape::kWarps)
        for (int row = lane; row < kRows; row += 32) sums[token * Shape::kSumStride + row] = sum_slots(token, row);
      sync_cluster();
    }
    const auto total_of = [&](int token, int row) {
      if (args.split == 1) return sum_slots(token, row);
      const uint32_t there = shared_address(sums + token * Shape::kSumStride + row);
      float total = 0.0f;
      for (int block = 0; block < args.split; ++block) total += load_from_block(there, block);
      return total;
    };
    for (int token = first_token; token < args.m; token += Shape::kWarps * args.split)
      for (int row = lane; row < out_rows; row += 32) {
        const int column = tile * out_rows + row;
        if (column >= args.n) break;
        float value = total_of(token, row);
        if (args.bias) value += bf16_low(args.bias[column]);
        if (args.gate_rows) {
          const float up = round_to_bf16(total_of(token, kRows / 2 + row));
          value = activate(args.activation, round_to_bf16(value)) * up;
        }
        const int64_t to = static_cast<int64_t>(token) * args.n + column;
        if (args.add)
          value = round_to_bf16(value) + (token == first_token && row == lane ? first_old : old_of(token, row));
        if (args.float_out)
          static_cast<float*>(args.out)[to] = value;
        else
          static_cast<uint16_t*>(args.out)[to] = static_cast<uint16_t>(to_bf16_pair(value, 0.0f));
      }
    if (args.split > 1)
      end_cluster();
    else
      sync_threads<1, Shape::kWarps * 32>();
  }
}

}  // namespace inflight::cuda
