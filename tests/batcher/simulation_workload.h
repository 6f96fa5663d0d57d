#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "inflight_batcher/scheduler/scheduler.h"

namespace inflight {

/// What the cache holds for a position: a digest of all tokens up to it, as keys and values depend on all of them.
inline uint64_t digest(uint64_t before, TokenId token) {
  uint64_t value = (before ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15ull;
  value ^= value >> 29;
  return value * 0xBF58476D1CE4E5B9ull ^ value >> 32;
}

/// The same for a sequence's token, which may be virtual: then the content depends on its table too, and where that
/// cannot be told from others, on the sequence.
inline uint64_t digest(uint64_t before, std::span<const TokenId> tokens, int position, SequenceId id,
                       const KvPolicy* policy) {
  const auto at = static_cast<size_t>(position);
  if (policy && at < policy->extra_ids.size()) before += policy->extra_ids[at] * 1000003;
  if (policy && position == policy->shareable_tokens) before += id * 7919;
  return digest(before, tokens[at]);
}

/// The prompt and what follows it, `size` tokens in all.
inline std::vector<TokenId> continuation(std::vector<TokenId> tokens, size_t size, int vocabulary, SequenceId id,
                                         const KvPolicy* policy) {
  uint64_t value = 0;
  for (size_t i = 0; tokens.size() < size; ++i) {
    value = digest(value, tokens, static_cast<int>(i), id, policy);
    if (i + 1 == tokens.size()) tokens.push_back(static_cast<TokenId>(value % vocabulary));
  }
  return tokens;
}

/// The workload's shape; everything else is drawn from the same generator.
struct Setup {
  KvCacheManager::Config kv;
  Scheduler::Config scheduler;
  int vocabulary = 0;     // small: chance prefixes meet
  int max_in_flight = 1;  // steps under way
  bool eager = false;     // always as many as possible, as the executor has it
  int sequences = 0;
  double cancel_probability = 0;
};

struct Workload {
  Setup setup;
  std::vector<Scheduler::NewSequence> arrivals;
  std::vector<int> lengths;  // tokens at which each one ends, <= max_total_tokens
};

/// Draws pools, budgets and sequences so that prefixes meet often and blocks are scarce.
class WorkloadGenerator {
 public:
  WorkloadGenerator(uint64_t seed, CapacityPolicy policy, bool plan_ahead, bool beams)
      : random_(seed), plan_ahead_(plan_ahead), beams_(beams) {
    workload_.setup.scheduler.policy = policy;
  }

  Workload make() {
    draw_setup();
    const Setup& setup = workload_.setup;
    std::vector<std::vector<TokenId>> documents(between(1, 3));
    for (auto& document : documents) document = draw_tokens(40);
    for (int i = 0; i < setup.sequences; ++i) draw_sequence(i, documents);
    return workload_;
  }

 private:
  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(random_); }

  void draw_setup() {
    Setup& setup = workload_.setup;
    setup.kv.block_size = 1 << between(0, 3);
    setup.kv.num_blocks = between(2, 1 + 96 / setup.kv.block_size);
    setup.kv.enable_reuse = chance(0.8);
    setup.kv.enable_partial_reuse = chance(0.8);
    if (chance(0.5)) setup.kv.num_host_blocks = between(1, 2 * setup.kv.num_blocks);
    setup.kv.onboard_blocks = chance(0.8);
    setup.scheduler.max_batch_size = between(1, 8);
    setup.scheduler.max_num_tokens = chance(0.5) ? between(1, 12) : between(8, 64);
    setup.scheduler.enable_chunked_context = chance(0.6);
    setup.vocabulary = between(2, 30);
    setup.max_in_flight = between(1, 3);
    setup.scheduler.plan_ahead = plan_ahead_;
    setup.scheduler.steps_in_flight = !plan_ahead_ && chance(0.5) ? setup.max_in_flight : 1;
    setup.eager = chance(0.5);
    setup.sequences = between(1, 20);
    setup.cancel_probability = chance(0.5) ? 0.0 : 0.02;
  }

  std::vector<TokenId> draw_tokens(int count) {
    std::vector<TokenId> tokens(count);
    for (TokenId& token : tokens) token = between(0, workload_.setup.vocabulary - 1);
    return tokens;
  }

  /// A leading part of a document, often all of it, and a tail of its own; short enough to fit alone.
  void draw_sequence(int id, const std::vector<std::vector<TokenId>>& documents) {
    const Setup& setup = workload_.setup;
    int limit = setup.kv.num_blocks * setup.kv.block_size + 1;
    if (!setup.scheduler.enable_chunked_context) limit = std::min(limit, setup.scheduler.max_num_tokens + 1);
    const int total = between(2, std::max(2, chance(0.2) ? limit : std::min(limit, 40)));
    const int prompt = between(1, total - 1);
    Scheduler::NewSequence sequence;
    sequence.prompt = documents[between(0, static_cast<int>(documents.size()) - 1)];
    sequence.prompt.resize(std::min(prompt, chance(0.5) ? 40 : between(0, 40)));
    const std::vector<TokenId> own = draw_tokens(prompt - static_cast<int>(sequence.prompt.size()));
    sequence.prompt.insert(sequence.prompt.end(), own.begin(), own.end());
    sequence.id = 100 + id;
    sequence.max_total_tokens = total;
    sequence.priority = chance(0.7) ? 0.5f : 0.25f * static_cast<float>(between(0, 4));
    sequence.reuse_prefix = chance(0.9);
    if (chance(0.4)) sequence.kv_policy = draw_policy(prompt);
    if (chance(0.4)) draw_drafts(sequence);
    if (beams_) draw_beams(sequence);
    workload_.lengths.push_back(between(prompt + 1, total));
    workload_.arrivals.push_back(std::move(sequence));
  }

  Retention draw_retention() {
    Retention retention;
    retention.priority = chance(0.2) ? Retention::kDefaultPriority : between(0, Retention::kMaxPriority);
    if (chance(0.5)) retention.duration_ms = between(0, 60);
    return retention;
  }

  KvCacheManager::PolicyPtr draw_policy(int prompt) {
    auto policy = std::make_shared<KvPolicy>();
    policy->prompt_tokens = prompt;
    for (int count = between(0, 3); count > 0; --count) {
      RetentionRange range{between(0, prompt), std::nullopt, draw_retention()};
      if (chance(0.5)) range.end = range.begin + between(1, 20);
      policy->retention.ranges.push_back(range);
    }
    if (chance(0.5)) policy->retention.decode = draw_retention();
    if (chance(0.4)) draw_virtual_tokens(*policy);
    return policy;
  }

  /// Right, but for some; as many as may be, and more.
  void draw_drafts(Scheduler::NewSequence& sequence) {
    const size_t count = between(1, 12);
    sequence.drafts = continuation(sequence.prompt, sequence.prompt.size() + count, workload_.setup.vocabulary,
                                   sequence.id, sequence.kv_policy.get());
    sequence.drafts.erase(sequence.drafts.begin(), sequence.drafts.end() - static_cast<std::ptrdiff_t>(count));
    for (TokenId& draft : sequence.drafts)
      if (chance(0.15)) draft = between(0, workload_.setup.vocabulary - 1);
  }

  /// As many beams as fit alone, at most; and some sequences that are not planned ahead.
  void draw_beams(Scheduler::NewSequence& sequence) {
    const Setup& setup = workload_.setup;
    const int block_size = setup.kv.block_size;
    const int shared = static_cast<int>(sequence.prompt.size()) / block_size;
    const int own = (sequence.max_total_tokens - 1 + block_size - 1) / block_size - shared;
    int limit = std::min(setup.scheduler.max_batch_size, setup.scheduler.max_num_tokens);
    if (own > 0) limit = std::min(limit, (setup.kv.num_blocks - shared) / own);
    sequence.beam_width = chance(0.6) ? between(1, std::max(1, limit)) : 1;
    sequence.plan_ahead = chance(0.8);
    if (sequence.beam_width > 1) sequence.drafts.clear();
    if (sequence.beam_width > 1 && sequence.kv_policy) sequence.kv_policy = without_virtual_tokens(*sequence.kv_policy);
  }

  /// Simulated beams know tokens alone.
  static KvCacheManager::PolicyPtr without_virtual_tokens(KvPolicy policy) {
    policy.extra_ids.clear();
    policy.shareable_tokens = KvPolicy().shareable_tokens;
    return std::make_shared<KvPolicy>(std::move(policy));
  }

  /// Of few tables, so that some sequences share theirs; some tokens cannot be told apart at all.
  void draw_virtual_tokens(KvPolicy& policy) {
    if (chance(0.3)) policy.shareable_tokens = between(0, policy.prompt_tokens - 1);
    if (chance(0.3)) return;
    policy.extra_ids.resize(policy.prompt_tokens);
    const int first = between(0, policy.prompt_tokens - 1), table = between(1, 2);
    for (int i = first; i < std::min(first + 3, policy.prompt_tokens); ++i) policy.extra_ids[i] = table;
  }

  std::mt19937_64 random_;
  bool plan_ahead_;
  bool beams_;
  Workload workload_;
};

}  // namespace inflight
