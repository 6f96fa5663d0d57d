#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "inflight_batcher/api/request.h"
#include "inflight_batcher/api/result.h"

namespace inflight {

/// The search over the beams of one request. Host data only. It is given each running beam's best continuations and
/// says which go on; finished hypotheses are kept by their score, the sum of log probs / length^length_penalty.
///
/// Of a step's candidates, in the order of their sums, the first `beam_width` may finish (by an end id, a stop word or
/// their length); of the others the best `beam_width` go on. When it ends is what early_stopping says (Wu et al. 2016
/// for the penalty; the choices and their bounds as Hugging Face transformers has them, whose False, True and "never"
/// are 0, 1 and 2).
class BeamSearch {
 public:
  /// Borrowed for the search's life.
  struct Rules {
    const SamplingConfig& sampling;
    int max_tokens = 0;
    const std::vector<TokenId>& end_ids;
    const std::vector<std::vector<TokenId>>& stop_words;
  };

  /// Continuations of one beam, best first; token -1: none. `logits`: those of the model that they come from, or null.
  struct Candidates {
    std::span<const TokenId> tokens;
    std::span<const float> log_probs;
    std::shared_ptr<const std::vector<float>> logits;
  };

  /// A new beam: which of the running ones it continues, and by what.
  struct Choice {
    int parent = 0;
    TokenId token = 0;
  };

  struct Hypothesis {
    std::vector<TokenId> tokens;  // generated, without an end id
    std::vector<float> log_probs;
    double sum = 0;  // of the log probs, an end id's with them
    double score = 0;
    FinishReason finish_reason = FinishReason::kNotFinished;
    std::vector<std::shared_ptr<const std::vector<float>>> logits;
  };

  explicit BeamSearch(const Rules& rules);

  /// How many candidates of a beam suffice for any choice: beam_width and all that may finish. At most `limit`.
  int candidates_wanted(int limit) const;

  /// One step from the candidates of every running beam, in order; at first there is one beam, without tokens. True
  /// when the search goes on, with choices() as its beams.
  bool advance(std::span<const Candidates> candidates);

  const std::vector<Choice>& choices() const { return choices_; }

  bool has_ended() const { return ended_; }

  /// The best hypotheses so far, at most beam_width, best first: finished ones, and running ones by their score at
  /// their present length unless the search has ended.
  std::vector<Hypothesis> best() const;

 private:
  struct Candidate {
    int parent = 0;
    TokenId token = 0;
    float log_prob = 0;
    double sum = 0;
    double key = 0;  // what the choice goes by
  };

  std::vector<Candidate> gather(std::span<const Candidates> candidates) const;
  FinishReason reason_to_finish(const Candidate& candidate) const;
  double score_of(double sum, int length) const;
  Hypothesis continued(const Candidate& candidate, const Candidates& from, FinishReason reason) const;
  void keep_finished(Hypothesis hypothesis);
  bool goes_on() const;

  Rules rules_;
  size_t width_;
  int length_ = 0;
  bool ended_ = false;
  std::vector<Hypothesis> running_;
  std::vector<Hypothesis> finished_;  // best first, at most width_
  std::vector<Choice> choices_;
};

}  // namespace inflight
