#include "inflight_batcher/api/executor.h"

#include "inflight_batcher/executor/executor_impl.h"
#include "inflight_batcher/executor/kv_requests.h"
#include "inflight_batcher/executor/request_checks.h"

namespace inflight {

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNotFinished: return "";
    case FinishReason::kEndId:
    case FinishReason::kStopWords: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kTimedOut: return "timeout";
    case FinishReason::kCancelled: return "cancelled";
  }
  return "";
}

Executor::Executor(const std::string& engine_dir, const ExecutorConfig& config)
    : impl_(std::make_shared<Impl>(engine_dir, config)) {}
Executor::~Executor() { impl_->stop(); }
RequestId Executor::submit(Request request, Callback callback) {
  return impl_->submit(std::move(request), std::move(callback));
}
void Executor::validate(Request request) const { impl_->validate(request); }
void Executor::cancel(RequestId id, std::optional<int> sequence_index) { impl_->end({id, sequence_index, {}}); }
ExecutorStats Executor::stats() const { return impl_->stats(); }
const ModelInfo& Executor::model() const { return impl_->model(); }
const ExecutorConfig& Executor::config() const { return impl_->config(); }

Executor::Impl::Impl(const std::string& engine_dir, const ExecutorConfig& config)
    : config_(config),
      engine_(engine_dir, config),
      kv_cache_({engine_.num_blocks(), engine_.block_size(), config.kv_cache.enable_block_reuse,
                 config.kv_cache.enable_partial_reuse, engine_.num_host_blocks(), config.kv_cache.onboard_blocks}),
      scheduler_({config.max_batch_size, config.max_num_tokens, config.enable_chunked_context, config.capacity_policy,
                  engine_.plans_ahead() ? 1 : engine_.max_steps_in_flight(), engine_.plans_ahead()},
                 kv_cache_),
      responses_([this](RequestId id, const std::string& why) { end({id, std::nullopt, why}); }),
      by_slot_(config.max_batch_size) {
  describe_model();
  publish_stats();
  thread_ = std::thread([this] { loop(); });
}

void Executor::Impl::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  responses_.stop();  // while there still is an executor: callbacks may call it
}

void Executor::Impl::describe_model() {
  const Plan& plan = engine_.plan();
  const int limit = config_.max_sequence_length.value_or(plan.max_positions);
  check(limit >= 2 && limit <= plan.max_positions, ErrorCode::kInvalidArgument, "max_sequence_length is ", limit,
        ", wanted 2 to the network's ", plan.max_positions, " positions");
  model_ = {plan.family,
            plan.vocabulary_size,
            limit,
            engine_.device(),
            config_.tensor_parallel,
            config_.pipeline_parallel,
            static_cast<int64_t>(engine_.weight_bytes()),
            engine_.kv_bytes_per_token(),
            engine_.load_report()};
  counters_.max_requests = config_.max_batch_size;
  counters_.kv_tokens_per_block = engine_.block_size();
  (engine_.device() == "cpu" ? counters_.memory_cpu_bytes : counters_.memory_gpu_bytes) =
      static_cast<int64_t>(engine_.memory_bytes());
  (engine_.device() == "cpu" ? counters_.memory_cpu_bytes : counters_.memory_pinned_bytes) +=
      static_cast<int64_t>(engine_.host_kv_bytes());
}

void Executor::Impl::check_limits(Request& request) const {
  check_request(request, model_, engine_.plan(), config_);
  std::string why;
  const int prompt = static_cast<int>(request.input_ids.size());
  check(scheduler_.fits(prompt, prompt + request.max_tokens, &why, request.sampling.beam_width),
        ErrorCode::kInvalidArgument, why);
}

void Executor::Impl::validate(Request& request) const {
  check_limits(request);
  std::lock_guard lock(mutex_);
  check_is_up();
  check_queue_space();
}

RequestId Executor::Impl::submit(Request request, Callback callback, bool is_admitted) {
  check_limits(request);
  auto state = std::make_shared<RequestState>();
  state->request = std::move(request);
  state->callback = std::move(callback);
  state->arrival_ns = steady_ns();
  state->sequences_left = state->request.sampling.num_return_sequences;
  if (state->request.timeout.count() > 0) state->deadline = deadline_in(state->request.timeout);
  resolve_words(*state, engine_.plan());
  state->vocabulary_size = model_.vocabulary_size;
  state->kv_policy = kv_policy_of(state->request, model_.vocabulary_size);
  {
    std::lock_guard lock(mutex_);
    check_is_up();
    if (!is_admitted) check_queue_space();
    state->id = next_request_++;
    inbox_.requests.push_back(state);
  }
  wake_.notify_one();
  return state->id;
}

void Executor::Impl::check_is_up() const {
  check(broken_.empty(), ErrorCode::kInternal, "the executor has failed and takes no more requests: ", broken_);
  check(!stopping_, ErrorCode::kUnavailable, "the executor is shutting down");
}

// Requests that find a free slot do not wait, so they do not count against the queue's size.
void Executor::Impl::check_queue_space() const {
  if (config_.max_queue_size <= 0) return;
  const int waiting = snapshot_.waiting_requests + static_cast<int>(inbox_.requests.size());
  const int free_slots = std::max(0, config_.max_batch_size - slots_taken_);
  check(waiting < config_.max_queue_size + free_slots, ErrorCode::kUnavailable, "Maximum queue size of ",
        config_.max_queue_size, " is reached: ", waiting, " requests wait; try again later");
}

void Executor::Impl::end(EndOrder order) {
  {
    std::lock_guard lock(mutex_);
    inbox_.ends.push_back(std::move(order));
  }
  wake_.notify_one();
}

ExecutorStats Executor::Impl::stats() const {
  std::lock_guard lock(mutex_);
  ExecutorStats stats = snapshot_;
  stats.waiting_requests += static_cast<int>(inbox_.requests.size());
  stats.active_requests += static_cast<int>(inbox_.requests.size());
  stats.delivery_seconds = responses_.delivery_seconds();
  return stats;
}

}  // namespace inflight
