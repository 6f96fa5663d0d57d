#include "inflight_batcher/engine/cuda_rank_runner.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <numeric>

#include "kernels/cuda/check.h"

namespace inflight {

namespace {

using cuda::check_cuda;

// Enough for the rows of drafts and those that are only returned; a whole generation step is in one slice in any case.
constexpr int kMinLogitsRows = 256;

CudaStepLimits limits_of(const Plan& plan, const RankConfig& config) {
  CudaStepLimits limits;
  limits.num_tokens = config.max_num_tokens;
  limits.batch_size = config.max_batch_size;
  limits.sequence_length = config.max_sequence_length;
  limits.table_width = (config.max_sequence_length + config.block_size - 1) / config.block_size;
  limits.vocabulary = plan.vocabulary_size;
  limits.candidates_per_beam = config.max_beam_width > 1 ? kMaxCandidates : 0;
  limits.hidden_size = plan.hidden_size;
  return limits;
}

std::filesystem::path tuning_cache() {
  const char* home = std::getenv("HOME");
  return home ? std::filesystem::path(home) / ".cache" / "inflight" / "linear_tuning" : std::filesystem::path();
}

cuda::CudaOptions options_of(const Plan& plan, const RankConfig& config) {
  cuda::CudaOptions options;
  options.max_num_tokens = config.max_num_tokens;
  options.max_batch_size = config.max_batch_size;
  options.max_table_width = limits_of(plan, config).table_width;
  options.batch_invariant = config.batch_invariant;
  options.tuning_cache = tuning_cache();
  return options;
}

}  // namespace

CudaRankRunner::CudaRankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group)
    : config_(config),
      vocabulary_(plan.vocabulary_size),
      max_logits_rows_(std::min(std::max(kMinLogitsRows, config.max_batch_size), config.max_num_tokens)),
      context_(options_of(plan, config)),
      weights_(plan, config.random_weights, config.threads, context_),
      program_(build_program(plan, cuda::op_table(), weights_, tensor_group, config.topology, 0, config.max_num_tokens,
                             max_logits_rows_, DType::kBfloat16)),
      arena_(program_.arena_bytes),
      io_(limits_of(plan, config), context_),
      drafts_(config.threads) {
  load(plan);
}

CudaRankRunner::~CudaRankRunner() { cudaStreamSynchronize(context_.stream()); }

TensorView CudaRankRunner::view(int slot, const BatchView& batch) const {
  return RunContext{nullptr, nullptr, &batch, arena_.data(), &program_.slots, nullptr}.view(slot);
}

void CudaRankRunner::run_ops(const std::vector<BoundOp>& ops, const BatchView& batch) {
  const RunContext context{&cuda::op_table(),      &context_,       &batch, arena_.data(), &program_.slots, &kv_cache_,
                           config_.max_num_tokens, max_logits_rows_};
  for (const BoundOp& op : ops) run_op(op, context);
}

void CudaRankRunner::run_body(const BatchView& batch) {
  if (cuda::op_table().prepare_step) cuda::op_table().prepare_step(batch, context_);
  run_ops(program_.body, batch);
}

// One token a sequence, all of them sampled: what graphs hold.
void CudaRankRunner::run_generation(int size) {
  const BatchView batch = io_.generation_view(size);
  run_body(batch);
  run_ops(program_.epilogue, batch);
  io_.sample(view(program_.logits, batch), 0, size, false);
}

void CudaRankRunner::run_step(Step& step, const PackedStep& packed) {
  const BatchView batch = io_.view(packed, step);
  run_body(batch);
  const int64_t rows = batch.logits_rows.shape[0];
  int64_t returned = 0;
  step.logits.resize(std::count(step.return_logits.begin(), step.return_logits.end(), 1) *
                     static_cast<size_t>(vocabulary_));
  for (int64_t first = 0; first < rows; first += max_logits_rows_) {
    BatchView slice = batch;
    slice.logits_rows = TensorView(batch.logits_rows.as<int32_t>() + first, DType::kInt32,
                                   {std::min<int64_t>(rows - first, max_logits_rows_)});
    run_ops(program_.epilogue, slice);
    const TensorView logits = view(program_.logits, slice);
    return_logits(step, logits, first, returned);
    const auto sampled = std::clamp<int64_t>(packed.num_sampled - first, 0, logits.shape[0]);
    if (sampled > 0) io_.sample(logits, static_cast<int>(first), static_cast<int>(sampled), packed.long_lists);
    io_.rank_candidates(logits, first, packed);
    drafts_.sample(step, logits, first, context_);
  }
  io_.publish_candidates(packed.num_candidates);
  if (step.return_captures) return_captures(step, batch);
}

// Copies to pageable memory wait for the GPU; steps that return logits are for looking, not for speed.
void CudaRankRunner::return_logits(Step& step, const TensorView& logits, int64_t first, int64_t& returned) {
  const int64_t width = logits.shape[1];
  for (int64_t row = 0; row < logits.shape[0]; ++row) {
    if (!step.return_logits[first + row]) continue;
    context_.copy(step.logits.data() + returned * width, logits.as<float>() + row * width, width * sizeof(float));
    ++returned;
  }
  if (!step.logits.empty()) context_.synchronize();
}

void CudaRankRunner::return_captures(Step& step, const BatchView& batch) {
  for (const Capture& capture : program_.captures) {
    const TensorView marked = view(capture.slot, batch);
    std::vector<uint16_t> stored(marked.elements());
    check(marked.dtype == DType::kBfloat16, ErrorCode::kInternal, "marked output '", capture.name, "' is ",
          describe(marked));
    context_.copy(stored.data(), marked.data, marked.bytes());
    context_.synchronize();
    std::vector<float>& values = step.captures[capture.full_name()];
    values.resize(stored.size());
    std::transform(stored.begin(), stored.end(), values.begin(),
                   [](uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); });
  }
}

bool CudaRankRunner::can_replay(const Step& step) const {
  const size_t sequences = step.context_lengths.size();
  if (!step.virtual_tokens.empty() || step.num_generation != static_cast<int>(sequences) ||
      step.token_ids.size() != sequences || step.sampling.size() != sequences || step.logits_rows.size() != sequences ||
      step.return_captures)
    return false;
  size_t list_words = 0;
  for (size_t i = 0; i < sequences; ++i) {
    const SamplingRow& row = step.sampling[i];
    list_words += row.end_ids.size() + row.bad_words.size() + row.bad_word_ends.size() + row.stop_token_ids.size();
    if (step.return_logits[i] || step.logits_rows[i] != static_cast<int32_t>(i) || !row.bias.empty()) return false;
  }
  return list_words <= CudaStepLimits::kListWords;
}

void CudaRankRunner::start(Step& step) {
  if (!step.copies.empty()) cuda::op_table().copy_kv_blocks(kv_cache_, host_kv_cache_, step.copies, context_);
  const int size = can_replay(step) ? graphs_.size_for(static_cast<int>(step.context_lengths.size())) : 0;
  const PackedStep packed = io_.send(step, size);
  if (size > 0) {
    graphs_.launch(size, context_.stream());
    io_.rank_candidates(view(program_.logits, io_.generation_view(size)), 0, packed);
    io_.publish_candidates(packed.num_candidates);
  } else {
    run_step(step, packed);
  }
  io_.mark_end();
}

void CudaRankRunner::launch(Step& step) {
  check(broken_.empty(), ErrorCode::kInternal, broken_);
  const int buffer = io_.next_buffer();
  try {
    start(step);
  } catch (...) {
    note_failure();
    io_.rewind(buffer);
    throw;
  }
  launched_.push_back(buffer);
}

bool CudaRankRunner::is_done(const Step&) { return io_.is_done(launched_.front()); }

void CudaRankRunner::finish(Step& oldest) {
  const int buffer = launched_.front();
  launched_.pop_front();
  try {
    io_.wait(buffer);
  } catch (...) {
    note_failure();
    throw;
  }
  const size_t count = oldest.sampling.size();
  oldest.tokens.resize(count);
  oldest.log_probs.resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (oldest.sampling[i].verifies_draft()) continue;  // sampled here
    oldest.tokens[i] = io_.tokens(buffer)[i];
    oldest.log_probs[i] = io_.log_probs(buffer)[i];
  }
  const int candidates = std::accumulate(oldest.sampling.begin(), oldest.sampling.end(), 0,
                                         [](int sum, const SamplingRow& row) { return sum + row.num_candidates; });
  oldest.candidate_tokens.assign(io_.candidate_tokens(buffer), io_.candidate_tokens(buffer) + candidates);
  oldest.candidate_log_probs.assign(io_.candidate_log_probs(buffer), io_.candidate_log_probs(buffer) + candidates);
}

// Waits for what is under way. An error that stays with the CUDA context ends this runner's life.
void CudaRankRunner::note_failure() {
  cudaGetLastError();
  const cudaError_t status = cudaDeviceSynchronize();
  if (status != cudaSuccess && broken_.empty())
    broken_ = concat("the GPU cannot go on after ", cudaGetErrorName(status), " (", cudaGetErrorString(status),
                     "); the process must be started anew");
}

void CudaRankRunner::recover() { check(broken_.empty(), ErrorCode::kInternal, broken_); }

}  // namespace inflight
