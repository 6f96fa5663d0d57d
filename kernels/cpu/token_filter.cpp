#include "kernels/cpu/token_filter.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/vec.h"

namespace inflight::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

bool TokenFilter::ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

int32_t TokenFilter::draw(const SamplingRow& row, std::span<const float> logits, double uniform) {
  filter(row, logits);
  return pick(uniform);
}

void TokenFilter::probabilities(const SamplingRow& row, std::span<const float> logits, std::vector<double>& out) {
  filter(row, logits);
  out.assign(logits.size(), 0.0);
  const double total = total_weight();
  for (const Candidate& candidate : candidates_) out[candidate.token] = candidate.weight / total;
}

void TokenFilter::filter(const SamplingRow& row, std::span<const float> logits) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < logits.size()) {
    keep_top(logits, row.top_k);
  } else {
    keep_all(logits);
  }
  weigh(row.temperature, highest);
  if (row.top_p < 1.0f) apply_top_p(row.top_p);
  if (row.min_p > 0.0f) drop_lighter(std::min(row.min_p, 1.0f));  // the likeliest weighs 1 by construction
}

void TokenFilter::keep_all(std::span<const float> logits) {
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {static_cast<int32_t>(i), logits[i], 0};
}

// Gathers twice the wanted number, drops the worse half, and from then on takes only what beats the worst one kept. Ids
// come in ascending order, so an equal logit that comes later ranks behind and may be passed over.
void TokenFilter::keep_top(std::span<const float> logits, size_t count) {
  candidates_.clear();
  float threshold = -kInfinity;
  bool full = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (full && logits[i] <= threshold) continue;
    candidates_.push_back({static_cast<int32_t>(i), logits[i], 0});
    if (candidates_.size() < 2 * count) continue;
    drop_behind(count);
    threshold = candidates_.back().logit;
    full = true;
  }
  drop_behind(count);
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
}

// Keeps the first `count` by rank, the last of them at the end.
void TokenFilter::drop_behind(size_t count) {
  if (candidates_.size() <= count) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + (count - 1), candidates_.end(), ranks_before);
  candidates_.resize(count);
}

void TokenFilter::weigh(float temperature, float highest) {
  for_each_vec(static_cast<int64_t>(candidates_.size()), [&](int64_t first, int64_t count) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = candidates_[first + i].logit;
    store(lanes, exp((load(lanes) - highest) / temperature));
    for (int64_t i = 0; i < count; ++i) candidates_[first + i].weight = lanes[i];
  });
  // With an infinite highest, inf - inf above gave NaN; all the probability is with those that share it.
  if (highest == kInfinity || highest == -kInfinity)
    for (Candidate& candidate : candidates_) candidate.weight = candidate.logit == highest ? 1.0f : 0.0f;
}

double TokenFilter::total_weight() const {
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  return total;
}

// The n tokens lighter than (1 - p) total / n cannot weigh (1 - p) together, so the nucleus does without them: that
// leaves few to look at. What remains is halved by rank until the last token of the nucleus is found, without sorting.
void TokenFilter::apply_top_p(double top_p) {
  const double total = total_weight();
  drop_lighter((1 - top_p) * total / static_cast<double>(candidates_.size()));
  const Candidate cut = find_cut(top_p * total);
  std::erase_if(candidates_, [&](const Candidate& candidate) { return ranks_before(cut, candidate); });
}

// The candidate that completes `mass` when they are added up by rank; the last where all together fall short by
// rounding.
TokenFilter::Candidate TokenFilter::find_cut(double mass) {
  partitioned_ = candidates_;
  auto begin = partitioned_.begin(), end = partitioned_.end();
  double before = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, ranks_before);
    double head = 0;
    for (auto it = begin; it != middle; ++it) head += it->weight;
    if (before + head >= mass) {
      end = middle;
    } else {
      before += head;
      begin = middle;
    }
  }
  return *begin;
}

void TokenFilter::drop_lighter(double least) {
  std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.weight < least; });
}

int32_t TokenFilter::pick(double uniform) const {
  const double target = uniform * total_weight();
  double passed = 0;
  int32_t last = candidates_.front().token;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0) continue;
    last = candidate.token;
    passed += candidate.weight;
    if (passed > target) return last;
  }
  return last;
}

}  // namespace inflight::cpu
