// One launch for all rows: a cluster of blocks keeps a row's logits in shared memory from the first read on, applies
// the rules there, and takes the argmax or cuts the ranking and draws. What a row does not ask for costs it nothing.

#include "kernels/cpu/philox.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_launch.cuh"
#include "kernels/cuda/sampling_ruled.cuh"
#include "kernels/cuda/sampling_search.cuh"

namespace inflight::cuda {
namespace sampling {
namespace {

struct Parameters {
  const float* logits;
  const GpuSamplingRow* rows;
  const int32_t* words;
  const float* bias;
  int32_t* history;
  int64_t history_stride;
  ResultBuffers results;
  const int32_t* buffer;  // or null
  int vocabulary;
  int chunks_per_block;
};

/// Of the logits as the model gave them, NaN and +inf aside: the highest, and the sum of exp(logit - highest).
struct RawSum {
  float highest = minus_infinity();
  float sum = 0;

  __device__ float log_prob(float logit) const {
    if (!(highest > minus_infinity()) || !(logit < INFINITY)) return minus_infinity();
    return logit - highest - logf(sum);
  }
};

struct MergeRawSums {
  __device__ RawSum operator()(const RawSum& a, const RawSum& b) const {
    const float highest = fmaxf(a.highest, b.highest);
    const auto scaled = [&](const RawSum& part) {
      return part.highest > minus_infinity() ? part.sum * expf(part.highest - highest) : 0.0f;
    };
    return {highest, scaled(a) + scaled(b)};
  }
};

__device__ __noinline__ RawSum raw_sum(Slice slice) {
  const auto finite = [](float logit) { return logit < INFINITY ? logit : minus_infinity(); };
  RawSum raw;
  slice.for_each([&](int, const Chunk& four) {
#pragma unroll
    for (const float logit : four.logits) raw.highest = fmaxf(raw.highest, finite(logit));
  });
  if (raw.highest > minus_infinity()) {
    slice.for_each([&](int, const Chunk& four) {
#pragma unroll
      for (const float logit : four.logits) raw.sum += exp_like_cpu(finite(logit) - raw.highest);
    });
  }
  return reduce(raw, MergeRawSums());
}

// The key of the k-th of the groups' bests: no fewer than k tokens reach it, and hardly more.
__device__ __noinline__ uint32_t group_floor() {
  const int groups = kGroups * team_size(), top_k = shared().row.top_k;
  uint32_t floor = UINT_MAX;
  if (threadIdx.x < groups) {
    const uint32_t own = shared().group_bests[threadIdx.x];
    int greater = 0;
#pragma unroll 4
    for (int i = 0; i < groups; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(&shared().group_bests[i]);
      greater += (four.x > own) + (four.y > own) + (four.z > own) + (four.w > own);
    }
    if (greater < top_k) floor = own;
  }
  floor = __reduce_min_sync(~0u, floor);
  if (lane() == 0) shared().warp_words[warp()] = floor;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) floor = min(floor, shared().warp_words[i]);
  return floor;
}

// All tokens lighter than (1 - p) / V of the whole weight, which is at least the 1 of the likeliest, cannot weigh 1 - p
// together. By half of that, for the roundings.
__device__ __forceinline__ uint32_t top_p_floor(const Weigher& weigh, float top_p, int vocabulary) {
  const float share = fminf(1.0f - top_p, 1.0f) * 0.5f / static_cast<float>(vocabulary);
  return key_of(weigh.highest() + weigh.temperature() * logf(share) + 0.0f);
}

__device__ __noinline__ double uniform_of_row() {
  const GpuSamplingRow& row = shared().row;
  return cpu::philox_uniform(row.seed, row.stream, static_cast<uint64_t>(generated(row)));
}

struct Weight {
  Cut cut;
  Weigher weigh;
  float least;

  __device__ __forceinline__ double operator()(int id, float logit) const {
    const float out = weigh(logit);
    return static_cast<double>(cut.keeps(logit, id) & (out >= least) ? out : 0.0f);
  }
};

__device__ __noinline__ int draw_from_all(Slice slice, Cut cut, Weigher weigh) {
  const Weight weight{cut, weigh, fminf(shared().row.min_p, 1.0f)};
  double sum = 0;
  slice.for_each([&](int id, const Chunk& four) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += weight(id + i, four.logits[i]);
  });
  const double total = reduce(sum, Add());
  const int token = locate(slice, weight, uniform_of_row() * total);
  return lane() == 0 ? token : -1;
}

__device__ __forceinline__ int draw_from_found(const Found& found, const Filters& filters, const Weigher& weigh) {
  if (!leads()) return -1;
  const int token = draw_from_list(found.count, filters, found.total, uniform_of_row(), weigh);
  return threadIdx.x == 0 ? token : -1;
}

// Infinite logits: all the probability is with those that share the highest.
__device__ __noinline__ void make_finite(Slice slice, float highest) {
  slice.transform([&](int, float logit) {
    return logit == highest ? 0.0f : logit != logit ? logit : minus_infinity();
  });
}

// One thread returns the drawn token, all others -1.
__device__ __forceinline__ int draw(Slice slice, int vocabulary, float highest) {
  const GpuSamplingRow& row = shared().row;
  const bool finite = !isinf(highest);
  if (!finite) make_finite(slice, highest);
  const Weigher weigh(finite ? highest : 0.0f, row.temperature);
  Filters filters{0, row.top_p, row.min_p};
  // Further from the highest, a weight is 0.
  const uint32_t lightest = key_of(fmaxf(weigh.highest() - 110 * weigh.temperature() + 0.0f, -FLT_MAX));
  Cut cut;
  if (row.top_k > 0 && row.top_k < vocabulary) {
    const bool few = finite && has_group_floor(row);
    const uint32_t floor = few ? max(lightest, group_floor()) : lightest;
    const Found found = find_cut(slice, ByCount(), weigh, row.top_k, floor, cut, few);
    filters.top_k = row.top_k;
    if (found.kind == Found::Kind::kList) return draw_from_found(found, filters, weigh);
    filters.top_k = 0;
    if (found.kind == Found::Kind::kCut) cut = found.cut;
  }
  if (row.top_p < 1.0f) {
    const uint32_t floor = max(max(lightest, key_of(cut.logit)), top_p_floor(weigh, row.top_p, vocabulary));
    const Found found = find_cut(slice, ByWeight{weigh}, weigh, row.top_p, floor, cut, false);
    if (found.kind == Found::Kind::kList) return draw_from_found(found, filters, weigh);
    if (found.kind == Found::Kind::kCut) cut = found.cut;
  }
  return draw_from_all(slice, cut, weigh);
}

__device__ __forceinline__ void answer(const ResultBuffers& results, int buffer, int64_t row, int32_t token,
                                       float log_prob) {
  (buffer ? results.tokens[1] : results.tokens[0])[row] = token;
  (buffer ? results.log_probs[1] : results.log_probs[0])[row] = log_prob;
}

// Grid: L clusters of blocks.
__global__ void __launch_bounds__(kThreads, 3) sample_kernel(const __grid_constant__ Parameters parameters) {
  if (threadIdx.x == 0) shared().team.next = 0;
  team_arrive();
  const int64_t index = blockIdx.x / team_size();
  const int vocabulary = parameters.vocabulary;
  const float* const logits = parameters.logits + index * vocabulary;
  const Slice slice(index, vocabulary, parameters.chunks_per_block, team_rank());
  const GpuSamplingRow& row = shared().row;
  wait_for_previous();
  let_next_start();
  slice.start_load(logits);
  copy_row(parameters.rows[index]);
  const int buffer = parameters.buffer ? *parameters.buffer & 1 : 0;
  slice.finish_load();
  __syncthreads();
  team_wait();
  if (row.slot < 0) {
    if (leads() && threadIdx.x == 0) answer(parameters.results, buffer, index, 0, 0.0f);
    return;
  }
  int32_t* const history = parameters.history + row.slot * parameters.history_stride;
  uint64_t best = slice.tidy();
  RawSum raw;
  if (row.want_log_prob) raw = raw_sum(slice);
  if (has_rules(row)) {
    best = ruled_best({parameters.words, history}, parameters.bias, slice, best);
  } else {
    send_group_bests(best);
    best = reduce(best, Maximum());
  }
  int token = leads() && threadIdx.x == 0 ? ranked_id(best) : -1;
  if (row.temperature != 0 && row.top_k != 1) token = draw(slice, vocabulary, ranked_logit(best));
  if (token < 0) return;
  answer(parameters.results, buffer, index, token, row.want_log_prob ? raw.log_prob(logits[token]) : 0.0f);
  if (row.history_length < parameters.history_stride) history[row.history_length] = token;
}

struct SamplingState {
  explicit SamplingState(CudaContext& context) { allow_shared_memory(sample_kernel, context); }
};

}  // namespace
}  // namespace sampling

void sample(const GpuSampleArgs& args, CudaContext& context) {
  using namespace sampling;
  Dim l("L"), v("V");
  Signature("sample").view("logits", args.logits, {l, v}, kFloat32);
  check(v > 0 || l == 0, ErrorCode::kInvalidArgument, "sample: the vocabulary is empty");
  check(allows_vectors(0, {args.logits.data}), ErrorCode::kInvalidArgument, "sample: the logits begin at ",
        args.logits.data, ", wanted a multiple of 16 bytes");
  if (l == 0) return;
  const TeamShape shape = team_shape("sample", v, context);
  context.state<SamplingState>();
  const Parameters parameters{
      args.logits.as<float>(), args.rows,    args.words,  args.bias,           args.history,
      args.history_stride,     args.results, args.buffer, static_cast<int>(v), shape.chunks_per_block};
  launch_teams(sample_kernel, l, shape, context, parameters);
}

}  // namespace inflight::cuda
