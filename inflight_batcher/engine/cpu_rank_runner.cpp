#include "inflight_batcher/engine/cpu_rank_runner.h"

#include <algorithm>
#include <mutex>

#include "inflight_batcher/engine/kv_pool.h"
#include "inflight_batcher/engine/random_weights.h"
#include "inflight_batcher/engine/weights.h"

namespace inflight {

namespace {

std::unique_ptr<WeightSource> open_weights(const Plan& plan, bool random, const Communicator& tensor_group) {
  if (random) return std::make_unique<RandomWeights>(plan, tensor_group.rank(), tensor_group.size());
  return std::make_unique<WeightStore>(plan, tensor_group.rank(), tensor_group.size());
}

TensorView vector_view(std::vector<int32_t>& values) {
  return TensorView(values.data(), DType::kInt32, {static_cast<int64_t>(values.size())});
}

}  // namespace

CpuRankRunner::CpuRankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group,
                             Communicator& pipeline)
    : config_(config),
      stage_(config.topology.stage_of(config.rank)),
      last_stage_(stage_ == config.topology.pipeline_parallel - 1),
      answers_(config.topology.tp_rank_of(config.rank) == 0),
      pipeline_(pipeline),
      device_(config.threads),
      weights_(open_weights(plan, config.random_weights, tensor_group)),
      program_(build_program(plan, cpu::op_table(), *weights_, tensor_group, config.topology, stage_,
                             config.max_num_tokens, config.max_logits_rows)),
      arena_(std::make_unique<HostMemory>(program_.arena_bytes)),
      hidden_size_(plan.hidden_size) {
  kv_memory_ = allocate_kv_cache(plan, config_.num_blocks, kv_cache_);
  if (config_.num_host_blocks > 0) host_kv_memory_ = allocate_kv_cache(plan, config_.num_host_blocks, host_kv_cache_);
}

std::unique_ptr<HostMemory> CpuRankRunner::allocate_kv_cache(const Plan& plan, int num_blocks,
                                                             std::vector<KvCacheView>& layers) {
  const auto [first, last] = layers_of_stage(plan, config_.topology, stage_);
  const int tp_rank = config_.topology.tp_rank_of(config_.rank), tp_size = config_.topology.tensor_parallel;
  const KvPoolShape shape{num_blocks, config_.block_size, DType::kFloat32};
  auto memory = std::make_unique<HostMemory>(place_kv_cache(plan, first, last, shape, tp_rank, tp_size, nullptr).bytes);
  layers = place_kv_cache(plan, first, last, shape, tp_rank, tp_size, memory->data()).layers;
  return memory;
}

BatchView CpuRankRunner::batch_of(Step& step) {
  BatchView batch;
  batch.token_ids = vector_view(step.token_ids);
  if (std::find(step.token_ids.begin(), step.token_ids.end(), Step::kPendingToken) != step.token_ids.end()) {
    resolve_pending_tokens(step);
    batch.token_ids = vector_view(token_ids_);
  }
  batch.positions = vector_view(step.positions);
  batch.token_sequences = vector_view(step.token_sequences);
  batch.query_offsets = vector_view(step.query_offsets);
  batch.context_lengths = vector_view(step.context_lengths);
  batch.block_tables = TensorView(step.block_tables.data(), DType::kInt32,
                                  {static_cast<int64_t>(step.context_lengths.size()), step.table_width});
  batch.logits_rows = vector_view(step.logits_rows);
  batch.max_query_length = step.max_query_length;
  batch.max_context_length = step.max_context_length;
  batch.num_generation = step.num_generation;
  if (stage_ == 0 && !step.virtual_tokens.empty()) add_virtual_rows(step, batch);
  return batch;
}

void CpuRankRunner::add_virtual_rows(Step& step, BatchView& batch) {
  virtual_rows_.clear();
  for (const float* row : step.virtual_rows) virtual_rows_.insert(virtual_rows_.end(), row, row + hidden_size_);
  batch.virtual_tokens = vector_view(step.virtual_tokens);
  batch.virtual_rows =
      TensorView(virtual_rows_.data(), DType::kFloat32, {static_cast<int64_t>(step.virtual_rows.size()), hidden_size_});
}

void CpuRankRunner::resolve_pending_tokens(const Step& step) {
  token_ids_ = step.token_ids;
  for (size_t i = 0; i < token_ids_.size(); ++i)
    if (token_ids_[i] == Step::kPendingToken) token_ids_[i] = last_tokens_.at(step.slots[step.token_sequences[i]]);
}

int CpuRankRunner::slot_of_row(const Step& step, int64_t row) const {
  return step.slots[step.token_sequences[step.logits_rows[row]]];
}

void CpuRankRunner::run_ops(const std::vector<BoundOp>& ops, const BatchView& batch) {
  const RunContext context{&cpu::op_table(), &device_, &batch, arena_->data(), &program_.slots, &kv_cache_};
  for (const BoundOp& op : ops) run_op(op, context);
}

void CpuRankRunner::launch(Step& step) {
  const BatchView batch = batch_of(step);
  if (!step.copies.empty()) cpu::op_table().copy_kv_blocks(kv_cache_, host_kv_cache_, step.copies, device_);

  const RunContext context{nullptr, nullptr, &batch, arena_->data(), &program_.slots, nullptr};
  for (int slot : program_.carry_in)
    pipeline_.receive(context.view(slot), config_.rank - config_.topology.tensor_parallel);
  run_ops(program_.body, batch);
  for (int slot : program_.carry_out)
    pipeline_.send(context.view(slot), config_.rank + config_.topology.tensor_parallel);

  if (last_stage_) run_epilogue(step, batch);
  if (answers_ && step.return_captures) copy_captures(step, batch);
}

void CpuRankRunner::run_epilogue(Step& step, const BatchView& batch) {
  tokens_.assign(step.sampling.size(), 0);
  log_probs_.assign(step.sampling.size(), 0.0f);
  const auto rows = static_cast<int64_t>(step.logits_rows.size());
  for (int64_t first = 0; first < rows; first += config_.max_logits_rows) {
    BatchView slice = batch;
    slice.logits_rows = TensorView(step.logits_rows.data() + first, DType::kInt32,
                                   {std::min<int64_t>(rows - first, config_.max_logits_rows)});
    run_ops(program_.epilogue, slice);
    const RunContext context{nullptr, nullptr, &slice, arena_->data(), &program_.slots, nullptr};
    const TensorView logits = context.view(program_.logits);
    if (answers_) answer_logits(step, logits, first);
    if (answers_) rank_candidates(step, logits, first);
    // A rank that only computes samples too where the next step's tokens are this one's: all have the same logits.
    if (answers_ || config_.plan_ahead) sample_slice(step, logits, first);
  }
  if (!answers_) return;
  step.tokens = tokens_;
  step.log_probs = log_probs_;
}

void CpuRankRunner::answer_logits(Step& step, const TensorView& logits, int64_t first) {
  const int64_t width = logits.shape[1];
  for (int64_t row = 0; row < logits.shape[0]; ++row) {
    if (!step.return_logits[first + row]) continue;
    const float* values = logits.as<float>() + row * width;
    step.logits.insert(step.logits.end(), values, values + width);
  }
}

// Before the other rows are sampled; neither touches the other's.
void CpuRankRunner::rank_candidates(Step& step, const TensorView& logits, int64_t first) {
  const auto count = std::clamp<int64_t>(static_cast<int64_t>(step.sampling.size()) - first, 0, logits.shape[0]);
  const std::span<const SamplingRow> rows(step.sampling.data() + first, count);
  int64_t candidates = 0;
  for (const SamplingRow& row : rows) candidates += row.num_candidates;
  if (candidates == 0) return;
  const size_t begin = step.candidate_tokens.size();
  step.candidate_tokens.resize(begin + candidates);
  step.candidate_log_probs.resize(begin + candidates);
  cpu::op_table().best_candidates(
      {TensorView(logits.data, logits.dtype, {count, logits.shape[1]}), rows,
       std::span(step.candidate_tokens).subspan(begin), std::span(step.candidate_log_probs).subspan(begin)},
      device_);
}

void CpuRankRunner::sample_slice(Step& step, const TensorView& logits, int64_t first) {
  const auto count = std::clamp<int64_t>(static_cast<int64_t>(step.sampling.size()) - first, 0, logits.shape[0]);
  if (count == 0) return;
  const std::vector<SamplingRow> rows = resolved_rows(step, first, count);
  cpu::op_table().sample(
      {TensorView(logits.data, logits.dtype, {count, logits.shape[1]}), rows,
       std::span<int32_t>(tokens_.data() + first, count), std::span<float>(log_probs_.data() + first, count)},
      device_);
  if (!config_.plan_ahead) return;
  last_tokens_.resize(std::max<size_t>(last_tokens_.size(), config_.max_batch_size));
  for (int64_t row = first; row < first + count; ++row) last_tokens_.at(slot_of_row(step, row)) = tokens_[row];
}

// A row's history with the token that the step before sampled for it, where the host did not know it yet.
std::vector<SamplingRow> CpuRankRunner::resolved_rows(const Step& step, int64_t first, int64_t count) {
  std::vector<SamplingRow> rows(step.sampling.begin() + first, step.sampling.begin() + first + count);
  histories_.resize(std::max<size_t>(histories_.size(), count));
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i].pending == 0) continue;
    check(rows[i].pending == 1, ErrorCode::kInternal, rows[i].pending,
          " tokens of a history are pending, wanted 0 or 1");
    histories_[i].assign(rows[i].history.begin(), rows[i].history.end());
    histories_[i].push_back(last_tokens_.at(slot_of_row(step, first + i)));
    rows[i].history = histories_[i];
    rows[i].pending = 0;
  }
  return rows;
}

void CpuRankRunner::copy_captures(Step& step, const BatchView& batch) {
  static std::mutex mutex;  // stages of one step answer into the same map
  const RunContext context{nullptr, nullptr, &batch, arena_->data(), &program_.slots, nullptr};
  for (const Capture& capture : program_.captures) {
    const TensorView view = context.view(capture.slot);
    const float* values = view.as<float>();
    std::lock_guard lock(mutex);
    step.captures[capture.full_name()].assign(values, values + view.elements());
  }
}

}  // namespace inflight
