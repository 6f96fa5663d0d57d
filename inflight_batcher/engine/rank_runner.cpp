#include "inflight_batcher/engine/rank_runner.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace inflight {

HostMemory::HostMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
  void* data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(data != MAP_FAILED, ErrorCode::kUnavailable, "the system refuses ", bytes_, " bytes of memory");
  data_ = static_cast<std::byte*>(data);
}

HostMemory::~HostMemory() { ::munmap(data_, bytes_); }

void Step::clear() {
  for (auto* numbers : {&token_ids, &positions, &token_sequences, &query_offsets, &context_lengths, &block_tables,
                        &logits_rows, &tokens})
    numbers->clear();
  copies.clear();
  sampling.clear();
  return_logits.clear();
  log_probs.clear();
  logits.clear();
  captures.clear();
  table_width = max_query_length = max_context_length = 0;
  return_captures = failed = false;
}

RankRunner::RankRunner(const Plan& plan, const RankConfig& config, Communicator& tensor_group, Communicator& pipeline)
    : config_(config),
      stage_(config.topology.stage_of(config.rank)),
      first_stage_(stage_ == 0),
      last_stage_(stage_ == config.topology.pipeline_parallel - 1),
      answers_(config.topology.tp_rank_of(config.rank) == 0),
      pipeline_(pipeline),
      device_(config.threads),
      weights_(plan, tensor_group.rank(), tensor_group.size()),
      built_(build_program(plan, cpu::op_table(), weights_, tensor_group, config.topology, stage_,
                           config.max_num_tokens, config.max_logits_rows)),
      arena_(std::make_unique<HostMemory>(built_.program.arena_bytes)) {
  allocate_kv_cache(plan);
}

void RankRunner::allocate_kv_cache(const Plan& plan) {
  auto [first, last] = config_.topology.layers_of(stage_, plan.repeat);
  first *= plan.unit_layers;
  last *= plan.unit_layers;
  const int tp = config_.topology.tensor_parallel;
  const auto layer_shape = [&](int layer) {
    const PlanKvLayer& kv = plan.kv_layers[layer];
    const auto [head, head_end] = units_of_rank(kv.num_kv_heads, config_.topology.tp_rank_of(config_.rank), tp);
    return TensorView(nullptr, DType::kFloat32,
                      {config_.num_blocks, head_end - head, config_.block_size, kv.head_size});
  };
  size_t bytes = 0;
  for (int layer = first; layer < last; ++layer) bytes += 2 * layer_shape(layer).bytes();
  kv_memory_ = std::make_unique<HostMemory>(bytes);

  std::byte* place = kv_memory_->data();
  for (int layer = first; layer < last; ++layer) {
    KvCacheView view{layer_shape(layer), layer_shape(layer)};
    view.keys.data = place;
    view.values.data = place + view.keys.bytes();
    place += 2 * view.keys.bytes();
    kv_cache_.push_back(view);
  }
}

BatchView RankRunner::batch_of(Step& step) const {
  const auto vector_view = [](std::vector<int32_t>& values) {
    return TensorView(values.data(), DType::kInt32, {static_cast<int64_t>(values.size())});
  };
  BatchView batch;
  batch.token_ids = vector_view(step.token_ids);
  batch.positions = vector_view(step.positions);
  batch.token_sequences = vector_view(step.token_sequences);
  batch.query_offsets = vector_view(step.query_offsets);
  batch.context_lengths = vector_view(step.context_lengths);
  batch.block_tables = TensorView(step.block_tables.data(), DType::kInt32,
                                  {static_cast<int64_t>(step.context_lengths.size()), step.table_width});
  batch.logits_rows = vector_view(step.logits_rows);
  batch.max_query_length = step.max_query_length;
  batch.max_context_length = step.max_context_length;
  return batch;
}

void RankRunner::run_ops(const std::vector<BoundOp>& ops, const BatchView& batch) {
  const RunContext context{&cpu::op_table(), &device_, &batch, arena_->data(), &built_.program.slots, &kv_cache_};
  for (const BoundOp& op : ops) {
    try {
      op.run(context);
    } catch (const Error& e) {
      throw Error(e.code(), concat(op.label, ": ", e.what()));
    } catch (const std::exception& e) {
      throw Error(ErrorCode::kInternal, concat(op.label, ": ", e.what()));
    } catch (...) {  // an op of one's own may throw anything
      throw Error(ErrorCode::kInternal, concat(op.label, ": it threw something that is no std::exception"));
    }
  }
}

void RankRunner::run(Step& step) {
  const BatchView batch = batch_of(step);
  const Program& program = built_.program;
  if (!step.copies.empty()) cpu::op_table().copy_kv_blocks(kv_cache_, step.copies, device_);

  const RunContext context{nullptr, nullptr, &batch, arena_->data(), &program.slots, nullptr};
  for (int slot : program.carry_in)
    pipeline_.receive(context.view(slot), config_.rank - config_.topology.tensor_parallel);
  run_ops(program.body, batch);
  for (int slot : program.carry_out)
    pipeline_.send(context.view(slot), config_.rank + config_.topology.tensor_parallel);

  if (last_stage_) run_epilogue(step, batch);
  if (answers_ && step.return_captures) {
    static std::mutex mutex;  // stages of one step answer into the same map
    copy_captures(step, batch, mutex);
  }
}

void RankRunner::run_epilogue(Step& step, const BatchView& batch) {
  if (answers_) {
    step.tokens.assign(step.sampling.size(), 0);
    step.log_probs.assign(step.sampling.size(), 0.0f);
  }
  const auto rows = static_cast<int64_t>(step.logits_rows.size());
  for (int64_t first = 0; first < rows; first += config_.max_logits_rows) {
    BatchView slice = batch;
    slice.logits_rows = TensorView(step.logits_rows.data() + first, DType::kInt32,
                                   {std::min<int64_t>(rows - first, config_.max_logits_rows)});
    run_ops(built_.program.epilogue, slice);
    const RunContext context{nullptr, nullptr, &slice, arena_->data(), &built_.program.slots, nullptr};
    if (answers_) answer_slice(step, context.view(built_.program.logits), first);
  }
}

void RankRunner::answer_slice(Step& step, const TensorView& logits, int64_t first) {
  const int64_t width = logits.shape[1];
  for (int64_t row = 0; row < logits.shape[0]; ++row) {
    if (!step.return_logits[first + row]) continue;
    const float* values = logits.as<float>() + row * width;
    step.logits.insert(step.logits.end(), values, values + width);
  }
  const auto sampled = std::clamp<int64_t>(static_cast<int64_t>(step.sampling.size()) - first, 0, logits.shape[0]);
  if (sampled == 0) return;
  const std::span<const SamplingRow> rows(step.sampling.data() + first, sampled);
  cpu::op_table().sample({TensorView(logits.data, logits.dtype, {sampled, width}), rows,
                          std::span<int32_t>(step.tokens.data() + first, sampled),
                          std::span<float>(step.log_probs.data() + first, sampled)},
                         device_);
}

void RankRunner::copy_captures(Step& step, const BatchView& batch, std::mutex& mutex) {
  const RunContext context{nullptr, nullptr, &batch, arena_->data(), &built_.program.slots, nullptr};
  for (const Capture& capture : built_.program.captures) {
    const TensorView view = context.view(capture.slot);
    const float* values = view.as<float>();
    const std::string name = capture.layer < 0 ? capture.name : concat(capture.name, ".layer", capture.layer);
    std::lock_guard lock(mutex);
    step.captures[name].assign(values, values + view.elements());
  }
}

}  // namespace inflight
