#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/engine/engine.h"
#include "inflight_batcher/executor/response_queue.h"
#include "inflight_batcher/executor/step_builder.h"
#include "inflight_batcher/kv_cache/kv_cache_manager.h"
#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// The executor's loop: inbox -> scheduler -> engine -> results.
///
/// Client threads touch the inbox and the snapshot of the statistics only, under mutex_. Everything else belongs to the
/// engine thread.
class Executor::Impl {
 public:
  /// To end a request, or one sequence of it.
  struct EndOrder {
    RequestId id = 0;
    std::optional<int> sequence_index;
    std::string failure;  // the reason if it is one; empty: cancelled
  };

  Impl(const std::string& engine_dir, const ExecutorConfig& config);

  /// Ends what is in flight; whoever still shares this object afterwards is refused.
  void stop();

  void validate(Request& request) const;

  /// `is_admitted`: it goes on with an answer that has begun, so a full queue does not refuse it.
  RequestId submit(Request request, Callback callback, bool is_admitted = false);
  void end(EndOrder order);
  ExecutorStats stats() const;
  const ModelInfo& model() const { return model_; }
  const ExecutorConfig& config() const { return config_; }

 private:
  using SequencePtr = std::shared_ptr<SequenceState>;
  struct Inbox {
    std::vector<std::shared_ptr<RequestState>> requests;
    std::vector<EndOrder> ends;
  };

  void describe_model();
  void check_limits(Request& request) const;
  void check_is_up() const;
  void check_queue_space() const;

  // engine_loop.cpp: one turn = take what came in, give the engine a step, handle the oldest once it has enough.
  void loop();
  bool take_turn();
  void deliver();
  bool take_inbox();
  void admit(const std::shared_ptr<RequestState>& request);
  const std::vector<SequencePtr>& register_request(const std::shared_ptr<RequestState>& request);
  void add_to_scheduler(const SequencePtr& sequence);
  void release_siblings(const SequencePtr& first);
  void end_now(const EndOrder& order);
  void expire_deadlines();
  std::unique_ptr<StepInFlight> take_spare_step();
  bool feed_engine();
  void collect_sequences(StepInFlight& flight);
  void finish_oldest_step();
  void fail_steps_in_flight(const std::string& why);

  // recovery.cpp: ends every live request.
  bool start_over(const std::exception_ptr& failure);
  void stop_all(const std::exception_ptr& failure);
  void wait_for_steps();
  void end_live_requests(ErrorCode code, const std::string& why);

  // sequence_results.cpp: what a step's answers mean for its sequences.
  void match_drafts(StepInFlight& flight);
  void handle_item(StepInFlight& flight, size_t item);
  void take_logits(StepInFlight& flight);
  void take_captures(StepInFlight& flight, size_t index);
  void accept_tokens(const SequencePtr& sequence, std::span<const TokenId> tokens, std::span<const float> log_probs);
  FinishReason accept_token(SequenceState& sequence, TokenId token, float log_prob);
  void end_sequence(const SequencePtr& sequence, FinishReason reason);
  void fail_sequence(const SequencePtr& sequence, ErrorCode code, const std::string& why);
  void close_sequence(const SequencePtr& sequence, Result& result);
  Result& emit(const SequencePtr& sequence);
  Result& emit_new_tokens(const SequencePtr& sequence, FinishReason reason);

  // beam_results.cpp: the same for sequences with beams.
  void start_beams(SequenceState& sequence);
  void handle_beam(StepInFlight& flight, size_t item);
  void take_candidates(StepInFlight& flight, const Scheduler::Item& item, int count, BeamState& beams);
  void continue_beams(const SequencePtr& sequence);
  Result& emit_beams(const SequencePtr& sequence, FinishReason reason);
  BeamResult beam_result(const SequenceState& sequence, BeamSearch::Hypothesis hypothesis) const;

  void update_stats(const StepInFlight& flight);
  void publish_stats();

  ExecutorConfig config_;
  Engine engine_;
  ModelInfo model_;
  KvCacheManager kv_cache_;
  Scheduler scheduler_;
  ResponseQueue responses_;

  Inbox taken_;  // out of the inbox and not yet all admitted
  std::unordered_map<SequenceId, SequencePtr> sequences_;
  std::vector<SequencePtr> by_slot_;  // those that run
  std::unordered_map<RequestId, std::vector<SequencePtr>> requests_;
  std::unordered_map<RequestId, std::vector<SequencePtr>> siblings_;  // wait for their first sequence's prompt
  std::deque<std::unique_ptr<StepInFlight>> in_flight_;
  std::vector<std::unique_ptr<StepInFlight>> spare_steps_;
  std::vector<ResponseQueue::Delivery> outgoing_;
  SequenceId next_sequence_ = 1;
  std::chrono::steady_clock::time_point next_deadline_ = std::chrono::steady_clock::time_point::max();  // or earlier
  int64_t step_end_ns_ = 0;  // of the step whose answers are being handled
  ExecutorStats counters_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;
  RequestId next_request_ = 1;
  ExecutorStats snapshot_;
  int slots_taken_ = 0;  // as of the last publish_stats
  bool stopping_ = false;
  std::string broken_;  // why the executor takes no more requests
  std::thread thread_;
};

}  // namespace inflight
