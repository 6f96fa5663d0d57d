#include "kernels/cuda/attention_parts.h"
#include "kernels/cuda/context_attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace inflight::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kCostUnit = 128;  // keys; a tile costs what its last query sees, in these
constexpr int kCosts = kThreads;

struct PlanParams {
  const int* query_offsets;    // [S + 1]
  const int* context_lengths;  // [S]
  int* starts;                 // [S - first + 1] out
  ContextTile* tiles;          // out
  int* num_tiles;              // out
  int first_sequence;
  int num_sequences;
  int tile_tokens;
};

// The sum of `value` over lower threads; `total` becomes that over all. Uses sums[kWarps].
__device__ int sum_before(int value, int* sums, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();  // earlier readers of `sums` are done
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before + inclusive - value;
}

__device__ int tiles_of(const PlanParams& plan, int sequence) {
  const int tokens = plan.query_offsets[sequence + 1] - plan.query_offsets[sequence];
  return (tokens + plan.tile_tokens - 1) / plan.tile_tokens;
}

// Tile `index` in the order of the sequences.
__device__ ContextTile tile_at(const PlanParams& plan, int index) {
  int low = 0, high = plan.num_sequences - plan.first_sequence - 1;  // the last sequence that starts at or before
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (plan.starts[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int sequence = plan.first_sequence + low;
  const int begin = plan.query_offsets[sequence], end = plan.query_offsets[sequence + 1];
  const int offset = (index - plan.starts[low]) * plan.tile_tokens;
  const int tokens = min(plan.tile_tokens, end - begin - offset);
  const int length = plan.context_lengths[sequence];
  return {sequence, begin + offset, tokens, length > 0 ? length - (end - begin) + offset : -tokens};
}

__device__ int cost_of(const ContextTile& tile) {
  return min((tile.first_position + tile.num_tokens + kCostUnit - 1) / kCostUnit, kCosts - 1);
}

// One block: tiles per sequence summed, then a counting sort of all tiles by falling cost, so that the blocks of the
// attention kernel, which take items in order, end together.
__global__ void __launch_bounds__(kThreads) plan_tiles(PlanParams plan) {
  __shared__ int sums[kWarps];
  __shared__ int places[kCosts];
  const int thread = threadIdx.x;
  places[thread] = 0;
  wait_for_previous();
  let_next_start();
  const int sequences = plan.num_sequences - plan.first_sequence;
  int num_tiles = 0;
  for (int base = 0; base < sequences; base += kThreads) {
    const int s = base + thread;
    int total;
    const int before = sum_before(s < sequences ? tiles_of(plan, plan.first_sequence + s) : 0, sums, total);
    if (s < sequences) plan.starts[s] = num_tiles + before;
    num_tiles += total;
  }
  __syncthreads();
  for (int t = thread; t < num_tiles; t += kThreads) atomicAdd(&places[cost_of(tile_at(plan, t))], 1);
  __syncthreads();
  const int cost = kCosts - 1 - thread;
  int total;
  const int place = sum_before(places[cost], sums, total);
  places[cost] = place;
  __syncthreads();
  for (int t = thread; t < num_tiles; t += kThreads) {
    const ContextTile tile = tile_at(plan, t);
    plan.tiles[atomicAdd(&places[cost_of(tile)], 1)] = tile;
  }
  if (thread == 0) *plan.num_tiles = num_tiles;
}

}  // namespace

ContextPlan::ContextPlan(CudaContext& context)
    : tiles_((context.options().max_num_tokens + context.options().max_batch_size) * sizeof(ContextTile)),
      starts_((context.options().max_batch_size + 1) * sizeof(int)),
      counters_(2 * sizeof(int)) {
  check_cuda(cudaMemsetAsync(counters_.data(), 0, counters_.bytes(), context.stream()), "clearing counters");
}

void ContextPlan::make(const BatchView& batch, int tile_tokens, CudaContext& context) {
  if (tile_tokens == tile_tokens_) return;
  const int64_t most_tiles = batch.num_tokens() / tile_tokens + batch.num_sequences();
  check(most_tiles * static_cast<int64_t>(sizeof(ContextTile)) <= static_cast<int64_t>(tiles_.bytes()) &&
            batch.num_sequences() <= context.options().max_batch_size,
        ErrorCode::kInvalidArgument, "attention: ", batch.num_tokens(), " tokens of ", batch.num_sequences(),
        " sequences in a step, the context is made for ", context.options().max_num_tokens, " of ",
        context.options().max_batch_size);
  const PlanParams plan{batch.query_offsets.as<int>(),
                        batch.context_lengths.as<int>(),
                        starts_.as<int>(),
                        tiles_.as<ContextTile>(),
                        counters_.as<int>(),
                        batch.num_generation,
                        static_cast<int>(batch.num_sequences()),
                        tile_tokens};
  launch(plan_tiles, 1, kThreads, 0, context, plan);
  tile_tokens_ = tile_tokens;
}

void plan_context_attention(const BatchView&, CudaContext& context) { context.state<ContextPlan>().forget(); }

}  // namespace inflight::cuda
