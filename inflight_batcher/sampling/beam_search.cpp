#include "inflight_batcher/sampling/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "inflight/error.h"

namespace inflight {

namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

bool ends_with(const std::vector<TokenId>& tokens, TokenId last, const std::vector<TokenId>& word) {
  return word.back() == last && word.size() <= tokens.size() + 1 &&
         std::equal(word.rbegin() + 1, word.rend(), tokens.rbegin());
}

}  // namespace

BeamSearch::BeamSearch(const Rules& rules) : rules_(rules), width_(rules.sampling.beam_width), running_(1) {}

int BeamSearch::candidates_wanted(int limit) const {
  std::set<TokenId> last(rules_.end_ids.begin(), rules_.end_ids.end());
  for (const auto& word : rules_.stop_words) last.insert(word.back());
  return static_cast<int>(std::min<size_t>(width_ + last.size(), limit));
}

// By key, equal ones by the order of beams and candidates. What is banned is left out unless there is nothing else.
std::vector<BeamSearch::Candidate> BeamSearch::gather(std::span<const Candidates> candidates) const {
  std::vector<Candidate> all;
  for (size_t beam = 0; beam < candidates.size(); ++beam) {
    for (size_t i = 0; i < candidates[beam].tokens.size(); ++i) {
      const float log_prob = candidates[beam].log_probs[i];
      const bool is_first = all.empty();
      if (candidates[beam].tokens[i] < 0 || (!is_first && log_prob == -std::numeric_limits<float>::infinity()))
        continue;
      const double sum = running_[beam].sum + log_prob;
      all.push_back({static_cast<int>(beam), candidates[beam].tokens[i], log_prob, sum,
                     sum + rules_.sampling.beam_search_diversity_rate * static_cast<double>(beam)});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.key > b.key; });
  return all;
}

FinishReason BeamSearch::reason_to_finish(const Candidate& candidate) const {
  const std::vector<TokenId>& tokens = running_[candidate.parent].tokens;
  const auto& ends = rules_.end_ids;
  if (length_ >= rules_.sampling.min_tokens && std::find(ends.begin(), ends.end(), candidate.token) != ends.end())
    return FinishReason::kEndId;
  const auto completes = [&](const auto& word) { return ends_with(tokens, candidate.token, word); };
  if (length_ + 1 >= rules_.sampling.min_tokens &&
      std::any_of(rules_.stop_words.begin(), rules_.stop_words.end(), completes))
    return FinishReason::kStopWords;
  return length_ + 1 >= rules_.max_tokens ? FinishReason::kLength : FinishReason::kNotFinished;
}

double BeamSearch::score_of(double sum, int length) const {
  return sum / std::pow(static_cast<double>(length), rules_.sampling.length_penalty);
}

BeamSearch::Hypothesis BeamSearch::continued(const Candidate& candidate, const Candidates& from,
                                             FinishReason reason) const {
  Hypothesis next = running_[candidate.parent];
  next.sum = candidate.sum;
  next.score = score_of(candidate.sum, length_ + 1);
  next.finish_reason = reason;
  if (reason == FinishReason::kEndId) return next;
  next.tokens.push_back(candidate.token);
  next.log_probs.push_back(candidate.log_prob);
  if (from.logits) next.logits.push_back(from.logits);
  return next;
}

void BeamSearch::keep_finished(Hypothesis hypothesis) {
  const auto place = std::find_if(finished_.begin(), finished_.end(),
                                  [&](const Hypothesis& other) { return other.score < hypothesis.score; });
  finished_.insert(place, std::move(hypothesis));
  if (finished_.size() > width_) finished_.pop_back();
}

bool BeamSearch::advance(std::span<const Candidates> candidates) {
  check(candidates.size() == running_.size(), ErrorCode::kInternal, "beam search: candidates of ", candidates.size(),
        " beams, ", running_.size(), " run");
  const std::vector<Candidate> all = gather(candidates);
  check(!all.empty(), ErrorCode::kInternal, "beam search: no candidate");
  std::vector<Hypothesis> next;
  choices_.clear();
  for (size_t rank = 0; rank < all.size() && (rank < width_ || next.size() < width_); ++rank) {
    const Candidates& from = candidates[all[rank].parent];
    const FinishReason reason = reason_to_finish(all[rank]);
    if (reason != FinishReason::kNotFinished) {
      if (rank < width_) keep_finished(continued(all[rank], from, reason));
    } else if (next.size() < width_) {
      next.push_back(continued(all[rank], from, reason));
      choices_.push_back({all[rank].parent, all[rank].token});
    }
  }
  running_ = std::move(next);
  ++length_;
  ended_ = !goes_on();
  return !ended_;
}

bool BeamSearch::goes_on() const {
  if (running_.empty()) return false;
  if (finished_.size() < width_) return true;
  const SamplingConfig& sampling = rules_.sampling;
  if (sampling.early_stopping == 1) return false;
  // With a penalty > 0 the sum weighs least at the greatest length.
  const bool at_any_length = sampling.early_stopping == 2 && sampling.length_penalty > 0;
  double best = kMinusInfinity;
  for (const Hypothesis& beam : running_) best = std::max(best, beam.sum);
  return score_of(best, at_any_length ? rules_.max_tokens : length_) > finished_.back().score;
}

std::vector<BeamSearch::Hypothesis> BeamSearch::best() const {
  std::vector<Hypothesis> all = finished_;
  if (!ended_ && length_ > 0) all.insert(all.end(), running_.begin(), running_.end());
  std::stable_sort(all.begin(), all.end(), [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
  if (all.size() > width_) all.resize(width_);
  return all;
}

}  // namespace inflight
