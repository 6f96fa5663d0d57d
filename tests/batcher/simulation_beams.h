#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"
#include "tests/batcher/simulation_device.h"

namespace inflight {

/// A beam search that follows no probabilities but the digests of what the beams have in the cache: beams double, end,
/// change places and become fewer at random, and what comes out depends on every token before.
class SimulatedBeams {
 public:
  struct Beam {
    std::vector<TokenId> tokens;
    int lane = 0;
    int planned = 0;
  };

  SimulatedBeams() = default;
  SimulatedBeams(const std::vector<TokenId>& prompt, int width, int vocabulary)
      : width_(width), vocabulary_(vocabulary), beams_{{prompt}} {}

  bool spread() const { return spread_; }
  int size() const { return static_cast<int>(beams_[0].tokens.size()); }
  std::vector<Beam>& beams() { return beams_; }
  const std::vector<Beam>& beams() const { return beams_; }

  Beam* in_lane(int lane) {
    const auto found = std::find_if(beams_.begin(), beams_.end(), [&](const Beam& beam) { return beam.lane == lane; });
    return found == beams_.end() ? nullptr : &*found;
  }

  /// The next beams from the digests by lane; true while the search goes on. `lanes` = Scheduler::continue_beams.
  template <typename Lanes>
  void choose(const std::map<int, uint64_t>& digests, const Lanes& lanes) {
    std::vector<uint64_t> by_beam;
    for (const Beam& beam : beams_) by_beam.push_back(digests.at(beam.lane));
    const std::vector<Choice> choices = choices_of(by_beam);
    std::vector<Scheduler::BeamChoice> by_lane;
    for (const Choice& choice : choices) by_lane.push_back({beams_[choice.parent].lane, choice.token});
    const std::vector<int> taken = lanes(by_lane);
    follow(choices);
    for (size_t i = 0; i < beams_.size(); ++i) beams_[i].lane = taken.at(i);
  }

  /// The same without a scheduler: what the beams are at `size` tokens when nothing goes wrong.
  std::vector<std::vector<TokenId>> alone(int size) const {
    SimulatedBeams search(*this);
    search.beams_ = {{std::vector<TokenId>(beams_[0].tokens.begin(), beams_[0].tokens.begin() + prompt_length_)}};
    while (search.size() < size) {
      std::vector<uint64_t> digests;
      for (const Beam& beam : search.beams_) {
        uint64_t value = 0;
        for (const TokenId token : beam.tokens) value = digest(value, token);
        digests.push_back(value);
      }
      search.follow(search.choices_of(digests));
    }
    std::vector<std::vector<TokenId>> tokens;
    for (const Beam& beam : search.beams_) tokens.push_back(beam.tokens);
    return tokens;
  }

 private:
  struct Choice {
    int parent = 0;
    TokenId token = 0;
  };

  std::vector<Choice> choices_of(const std::vector<uint64_t>& digests) const {
    uint64_t state = 0;
    for (const uint64_t value : digests) state = digest(state ^ value, 1);
    const auto next = [&](uint64_t limit) {
      state = digest(state, 2);
      return state % limit;
    };
    const auto count = next(8) == 0 ? 1 + next(width_) : static_cast<uint64_t>(width_);
    std::vector<Choice> choices(count);
    for (Choice& choice : choices)
      choice = {static_cast<int>(next(digests.size())), static_cast<TokenId>(next(vocabulary_))};
    return choices;
  }

  void follow(const std::vector<Choice>& choices) {
    std::vector<Beam> next;
    for (const Choice& choice : choices) {
      next.push_back({beams_[choice.parent].tokens, 0, size()});
      next.back().tokens.push_back(choice.token);
    }
    beams_ = std::move(next);
    spread_ = true;
  }

  int width_ = 1;
  int vocabulary_ = 1;
  bool spread_ = false;
  std::vector<Beam> beams_;
  int prompt_length_ = beams_.empty() ? 0 : static_cast<int>(beams_[0].tokens.size());
};

}  // namespace inflight
