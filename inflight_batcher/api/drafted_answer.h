#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "inflight_batcher/api/executor.h"

namespace inflight {

class AnswerRounds;

/// How a small model drafts for a request.
struct DraftingConfig {
  int num_draft_tokens = 0;  // proposed in a round, >= 1
  /// Drafts are judged by their probabilities in both models (Leviathan et al. 2023, "Fast Inference from Transformers
  /// via Speculative Decoding"): more of them are accepted where tokens are drawn, and the answer follows the target's
  /// distribution. Else the answer is that of the target alone, bit for bit.
  bool use_draft_logits = false;
};

/// An answer of a target model made in rounds: a draft model with the same tokens proposes some, the target verifies
/// them in one step. With KV block reuse a round computes only its new tokens. Where the draft model cannot, the target
/// goes on without it: for a round (its queue is full, a step failed), or to the end (the prompt is not for it, its
/// executor has gone).
///
/// Thread-safe. Everything happens in callbacks of the two executors. Either may be destroyed at any time: the answer
/// ends with its target.
class DraftedAnswer : public std::enable_shared_from_this<DraftedAnswer> {
 public:
  /// Queues the first round. The results are those of a streaming request of `target`: one for each round with its new
  /// tokens, the last one final. Their request_id is that of the target's first round (0: it had none), counts, log
  /// probs and metrics are those of the whole answer so far: arrival is this call, the KV blocks and other first times
  /// are the first round's, drafts are those of all rounds. The executors' statistics count each round as a request.
  ///
  /// `callback` runs on a response thread of either executor, one result at a time; if it throws, the answer ends as
  /// Executor::submit says. A round that the target fails ends the answer with that failure; a full queue of the target
  /// refuses the answer here, and none of its rounds later.
  ///
  /// Throws what Executor::submit throws, with the first round unqueued and the callback never called; kInvalidArgument
  /// and kUnsupported also for what rounds cannot do: beams, several sequences, context logits, additional outputs,
  /// drafts of the request's own.
  static std::shared_ptr<DraftedAnswer> submit(Executor& target, Executor& draft, Request request,
                                               const DraftingConfig& config, Executor::Callback callback);
  ~DraftedAnswer();

  /// Ends the answer at the next step with a kCancelled result; after the last result: nothing.
  void cancel();

 private:
  DraftedAnswer(Executor& target, Executor& draft, std::unique_ptr<AnswerRounds> rounds, Executor::Callback callback);

  using Model = std::weak_ptr<Executor::Impl>;
  using Take = void (DraftedAnswer::*)(Result&&);

  bool ask_draft();
  void ask_target();
  void ask(const Model& model, Request request, Take take);
  void take_guarded(Take take, Result&& result);
  void take_drafts(Result&& result);
  void take_round(Result&& result);
  void go_on(bool with_drafts);
  bool ends_between_rounds();
  void finish(Result&& result);

  const Model target_;
  const Model draft_;
  // The response thread's whose round is under way: there is one at a time.
  std::unique_ptr<AnswerRounds> rounds_;
  Executor::Callback callback_;
  bool threw_ = false;  // what is called next ends the answer

  std::mutex mutex_;
  bool cancelled_ = false;
  uint64_t asked_ = 0;  // requests so far
  Model at_work_;       // on the request `id_`, or it has been
  RequestId id_ = 0;
};

}  // namespace inflight
