// The best continuations of beams. As in sampling, a cluster of blocks keeps a row in shared memory and applies its
// rules; then each round takes the best of all tokens, and the thread that has it looks for its next.

#include <cfloat>

#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_launch.cuh"
#include "kernels/cuda/sampling_ruled.cuh"

namespace inflight::cuda {
namespace sampling {
namespace {

struct Parameters {
  const float* logits;
  const GpuCandidateRow* rows;
  const int32_t* words;
  const float* bias;
  const int32_t* history;
  int64_t history_stride;
  int32_t* tokens;
  float* log_probs;
  int64_t first_row;
  int vocabulary;
  int chunks_per_block;
};

// This thread's best token that has not been taken; those that have are NaN, as the pads are. 0: none is left.
__device__ uint64_t best_left(const Slice& slice) {
  uint64_t best = 0;
  slice.for_each([&](int id, const Chunk& four) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (four.logits[i] == four.logits[i]) best = max(best, ranked(four.logits[i], id + i));
  });
  return best;
}

// Tokens of +inf share all the probability, as on the CPU.
__device__ __forceinline__ float finite(float logit) { return fminf(logit, FLT_MAX); }

__device__ float log_sum(const Slice& slice, float highest, float temperature) {
  if (highest == minus_infinity()) return 0;
  double sum = 0;
  slice.for_each([&](int, const Chunk& four) {
#pragma unroll
    for (const float logit : four.logits)
      sum += logit == logit ? exp_like_cpu((finite(logit) - highest) / temperature) : 0.0f;
  });
  return static_cast<float>(log(reduce(sum, Add())));
}

__device__ void rank(const Slice& slice, const Parameters& parameters, const GpuCandidateRow& wanted) {
  // The rules may have been applied by other threads of the block.
  __syncthreads();
  slice.transform([](int, float logit) { return logit == logit ? finite(logit) : logit; });
  uint64_t own = best_left(slice);
  uint64_t best = reduce(own, Maximum());
  const float temperature = shared().row.temperature > 0 ? shared().row.temperature : 1.0f;
  const float highest = ranked_logit(best);
  const float rest = log_sum(slice, highest, temperature);
  for (int i = 0; i < wanted.count; ++i) {
    if (leads() && threadIdx.x == 0) {
      const bool exists = best != 0, possible = exists && highest > minus_infinity();
      parameters.tokens[wanted.begin + i] = exists ? ranked_id(best) : -1;
      parameters.log_probs[wanted.begin + i] =
          possible ? (ranked_logit(best) - highest) / temperature - rest : minus_infinity();
    }
    if (own != 0 && own == best) {
      slice.logit(slice.place(ranked_id(best))) = not_a_number();
      own = best_left(slice);
    }
    best = reduce(own, Maximum());
  }
}

// Grid: clusters of blocks, one a row.
__global__ void __launch_bounds__(kThreads, 3) candidates_kernel(const __grid_constant__ Parameters parameters) {
  if (threadIdx.x == 0) shared().team.next = 0;
  team_arrive();
  wait_for_previous();
  let_next_start();
  const GpuCandidateRow& wanted = parameters.rows[blockIdx.x / team_size()];
  const int64_t logits_row = wanted.logits_row - parameters.first_row;
  const Slice slice(logits_row, parameters.vocabulary, parameters.chunks_per_block, team_rank());
  slice.start_load(parameters.logits + logits_row * parameters.vocabulary);
  copy_row(wanted.row);
  slice.finish_load();
  __syncthreads();
  team_wait();
  const GpuSamplingRow& row = shared().row;
  if (row.slot < 0) return;
  const uint64_t best = slice.tidy();
  const int32_t* const history = parameters.history + row.slot * parameters.history_stride;
  if (has_rules(row)) ruled_best({parameters.words, history}, parameters.bias, slice, best);
  rank(slice, parameters, wanted);
}

struct CandidatesState {
  explicit CandidatesState(CudaContext& context) { allow_shared_memory(candidates_kernel, context); }
};

}  // namespace
}  // namespace sampling

void best_candidates(const GpuCandidateArgs& args, CudaContext& context) {
  using namespace sampling;
  Dim l("L"), v("V");
  Signature("best_candidates").view("logits", args.logits, {l, v}, kFloat32);
  check(allows_vectors(0, {args.logits.data}), ErrorCode::kInvalidArgument, "best_candidates: the logits begin at ",
        args.logits.data, ", wanted a multiple of 16 bytes");
  if (args.num_rows == 0) return;
  check(v > 0, ErrorCode::kInvalidArgument, "best_candidates: the vocabulary is empty");
  const TeamShape shape = team_shape("best_candidates", v, context);
  context.state<CandidatesState>();
  const Parameters parameters{args.logits.as<float>(), args.rows,   args.words,     args.bias,      args.history,
                              args.history_stride,     args.tokens, args.log_probs, args.first_row, static_cast<int>(v),
                              shape.chunks_per_block};
  launch_teams(candidates_kernel, args.num_rows, shape, context, parameters);
}

}  // namespace inflight::cuda
