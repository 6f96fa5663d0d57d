// What happens once, before the first step: weights, timed algorithms, memory, graphs.

#include <algorithm>
#include <chrono>
#include <iomanip>

#include "inflight_batcher/engine/cuda_rank_runner.h"
#include "inflight_batcher/engine/kv_pool.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/linear.h"

namespace inflight {

namespace {

using cuda::check_cuda;

constexpr size_t kBytesPerGraph = 8 << 20;  // what the driver may take for one, kept out of the KV cache's share

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string decimal(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

std::string gigabytes(size_t bytes) { return decimal(static_cast<double>(bytes) * 1e-9, 2) + " GB"; }

size_t free_bytes() {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "the GPU's free memory");
  return free;
}

}  // namespace

// Seconds of `work` and of what it leaves to the GPU.
template <typename Work>
double CudaRankRunner::timed(const Work& work) {
  const Clock::time_point begin = Clock::now();
  work();
  context_.synchronize();
  return seconds_since(begin);
}

void CudaRankRunner::load(const Plan& plan) {
  load_weights();
  const double tuning = timed([&] { tune_linears(); });
  const double warming = timed([&] { warm_up(plan); });
  report_ += concat("matrix products: ", program_.linears.size(), " shapes tuned or looked up in ", decimal(tuning, 2),
                    " s; first steps in ", decimal(warming, 2), " s\n");
  choose_num_blocks(plan);
  const double kv = timed([&] { place_kv_pool(plan, config_.num_blocks); });
  report_ += concat("KV cache: ", static_cast<int64_t>(config_.num_blocks) * config_.block_size, " tokens in ",
                    config_.num_blocks, " blocks of ", config_.block_size, ", ", gigabytes(kv_memory_.bytes()), " in ",
                    decimal(kv, 2), " s; activations ", gigabytes(arena_.bytes()), "\n");
  const double host_kv = timed([&] { place_host_kv_pool(plan); });
  if (config_.num_host_blocks > 0)
    report_ += concat("KV cache in host memory: ", config_.num_host_blocks, " blocks, ",
                      gigabytes(host_kv_memory_.bytes()), " page-locked in ", decimal(host_kv, 2), " s\n");
  const size_t before = free_bytes();
  const double graphs = timed([&] { capture_graphs(); });
  report_ += concat("graphs: ", graphs_.count(), " for up to ", config_.max_batch_size, " sequences in ",
                    decimal(graphs, 2), " s, ", gigabytes(before - std::min(before, free_bytes())), "; ",
                    gigabytes(free_bytes()), " of GPU memory left\n");
  report_ += concat("loaded in ", decimal(seconds_since(begin_), 2), " s\n");
}

// The uploads began when the program was built.
void CudaRankRunner::load_weights() {
  weights_.finish_loading();
  const double seconds = seconds_since(weights_begin_);
  report_ += concat("weights: ", gigabytes(weights_.bytes()), config_.random_weights ? " drawn at random in " : " in ",
                    decimal(seconds, 2), " s (", decimal(static_cast<double>(weights_.bytes()) * 1e-9 / seconds, 1),
                    " GB/s)\n");
}

void CudaRankRunner::tune_linears() {
  std::vector<cuda::LinearShape> shapes;
  for (const LinearShape& linear : program_.linears) {
    cuda::LinearShape shape;
    shape.n = linear.gated ? linear.n / 2 : linear.n;
    shape.k = linear.k;
    shape.float_out = linear.out == DType::kFloat32;
    shape.bias = linear.bias;
    shape.gated = linear.gated;
    shape.add = linear.add;
    shape.max_rows = linear.rows == Rows::kLogits ? max_logits_rows_ : 0;
    shapes.push_back(shape);
  }
  cuda::tune_linear(shapes, config_.max_num_tokens, context_);
}

Step CudaRankRunner::made_up_step(int sequences, int tokens) const {
  Step step;
  step.query_offsets.push_back(0);
  for (int sequence = 0; sequence < sequences; ++sequence) {
    for (int position = 0; position < tokens; ++position) {
      step.token_ids.push_back(0);
      step.positions.push_back(position);
      step.token_sequences.push_back(sequence);
    }
    step.query_offsets.push_back(static_cast<int32_t>(step.token_ids.size()));
    step.logits_rows.push_back(static_cast<int32_t>(step.token_ids.size()) - 1);
    SamplingRow row;
    row.temperature = 0.0f;
    row.pending = tokens;
    step.sampling.push_back(row);
  }
  step.context_lengths.assign(sequences, tokens);
  for (int i = 0; i < sequences; ++i) step.slots.push_back(i);
  step.block_tables.assign(sequences, 0);
  step.table_width = 1;
  step.max_query_length = step.max_context_length = tokens;
  step.num_generation = tokens == 1 ? sequences : 0;
  step.return_logits.assign(sequences, 0);
  return step;
}

// Every family of kernels takes its scratch memory at its first use: before the rest is given to the KV cache.
void CudaRankRunner::warm_up(const Plan& plan) {
  place_kv_pool(plan, 1);
  const int tokens = std::min({config_.block_size, config_.max_num_tokens, config_.max_sequence_length});
  for (Step step : {made_up_step(1, tokens), made_up_step(config_.max_batch_size, 1)}) {
    launch(step);
    finish(step);
  }
}

void CudaRankRunner::choose_num_blocks(const Plan& plan) {
  const KvCacheConfig& kv = config_.kv_cache;
  kv_memory_ = cuda::DeviceMemory();
  const size_t graphs = kBytesPerGraph * graph_sizes(config_.max_batch_size).size();
  const size_t free = free_bytes();
  const double memory = static_cast<double>(free - std::min(free, graphs)) * kv.free_memory_fraction;
  const int64_t bytes_per_token = kv_bytes_per_token(plan, 1, DType::kBfloat16);
  int64_t tokens = static_cast<int64_t>(memory) / bytes_per_token;
  if (kv.max_tokens) tokens = std::min(tokens, *kv.max_tokens);
  const int64_t blocks = std::min<int64_t>(tokens, INT32_MAX) / config_.block_size;
  check(blocks >= 1, ErrorCode::kInvalidArgument, "the KV cache would hold ", tokens, " tokens (", gigabytes(free),
        " of GPU memory free, ", bytes_per_token, " bytes a token, max_tokens ",
        kv.max_tokens ? std::to_string(*kv.max_tokens) : "unset", "), less than one block of ", config_.block_size);
  config_.num_blocks = static_cast<int>(blocks);
}

void CudaRankRunner::place_kv_pool(const Plan& plan, int num_blocks) {
  const KvPoolShape shape{num_blocks, config_.block_size, DType::kBfloat16};
  kv_memory_ = cuda::DeviceMemory(place_kv_cache(plan, 0, plan.num_layers, shape, 0, 1, nullptr).bytes);
  kv_cache_ = place_kv_cache(plan, 0, plan.num_layers, shape, 0, 1, kv_memory_.data()).layers;
  // Whatever bits lie there must not be NaN: a masked value is still multiplied by zero.
  check_cuda(cudaMemsetAsync(kv_memory_.data(), 0, kv_memory_.bytes(), context_.stream()), "the KV cache");
}

void CudaRankRunner::place_host_kv_pool(const Plan& plan) {
  if (config_.num_host_blocks == 0) return;
  const KvPoolShape shape{config_.num_host_blocks, config_.block_size, DType::kBfloat16};
  host_kv_memory_ = PinnedMemory(place_kv_cache(plan, 0, plan.num_layers, shape, 0, 1, nullptr).bytes);
  host_kv_cache_ = place_kv_cache(plan, 0, plan.num_layers, shape, 0, 1, host_kv_memory_.data()).layers;
}

void CudaRankRunner::capture_graphs() {
  for (const int size : graph_sizes(config_.max_batch_size)) {
    Step step = made_up_step(size, 1);
    const int buffer = io_.next_buffer();
    io_.send(step, size);
    run_generation(size);
    context_.synchronize();
    graphs_.capture(size, context_.stream(), [&] { run_generation(size); });
    io_.rewind(buffer);
  }
}

}  // namespace inflight
