#pragma once

#include "kernels/cuda/sampling_draw.cuh"
#include "kernels/cuda/sampling_histogram.cuh"
#include "kernels/cuda/sampling_list.cuh"

/// Where the ranking of a row's tokens is cut: after the first k (top-k), or where they reach a share of the weight
/// (top-p). No full sort: a histogram of the distances to the highest logit encloses the cut in a narrow bracket,
/// further ones narrow it, and what lies within goes to a list in the leading block that is compared exactly. Sums that
/// decide are of float64, and ties end by id.
namespace inflight::cuda::sampling {

/// Of the tokens above a bracket: amount and number; and the number of those in it.
struct Sums {
  double amount = 0;
  uint32_t above = 0;
  uint32_t within = 0;

  __device__ bool listed() const { return within <= kListSize; }
};

struct AddSums {
  __device__ Sums operator()(const Sums& a, const Sums& b) const {
    return {a.amount + b.amount, a.above + b.above, a.within + b.within};
  }
};

struct Found {
  enum class Kind { kEverything, kList, kCut } kind;
  int count = 0;     // kList: entries; the leading block holds every token down to the cut and perhaps some behind it
  double total = 0;  // by weight: of all tokens
  Cut cut;           // kCut
};

// Puts the bracket's tokens into this block's memory, as many as a list holds.
template <typename Measure>
__device__ __noinline__ Sums gather(Slice slice, Measure measure, Bracket bracket, Cut kept) {
  Shared& memory = shared();
  if (threadIdx.x == 0) memory.found_count = 0;
  __syncthreads();
  const float low = bracket.low_logit(), high = bracket.high_logit();
  Sums sums;
  slice.for_each([&](int id, const Chunk& four) {
    if (!(four.highest() >= low)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float logit = four.logits[i], amount = measure(logit);
      const bool keeps = kept.keeps(logit, id + i), above = keeps & (logit > high);
      sums.amount += static_cast<double>(above ? amount : 0.0f);
      sums.above += above;
      if (!(keeps & !above & (logit >= low))) continue;
      ++sums.within;
      const uint32_t place = atomicAdd(&memory.found_count, 1);
      if (place < kListSize) memory.search.found[place] = ranked(logit, id + i);
    }
  });
  return reduce(sums, AddSums());
}

// Brings what the blocks gathered to the leading one. Right after gather(), whose blocks' counts it reads.
static __device__ __noinline__ void collect() {
  SearchMemory& memory = shared().search;
  if (leads()) {
    uint32_t begin = 0;
    for (int block = 0; block < team_size(); ++block) {
      const uint32_t count = block_part<Sums>(block).within;
      const uint64_t* const found = of_block(memory.found, block);
      for (uint32_t i = threadIdx.x; i < count; i += kThreads) memory.list[begin + i] = found[i];
      begin += count;
    }
  }
  synchronize_team();
}

// Halves the bracket until the list holds what is in it, or it is one logit. Returns its sums.
template <typename Measure>
__device__ __noinline__ Sums bisect(Slice slice, Measure measure, Bracket& bracket, Cut kept, Sums sums,
                                    double target) {
  while (sums.within > kListSize && bracket.low < bracket.high) {
    const uint32_t middle = bracket.low + (bracket.high - bracket.low + 1) / 2;
    const float low = logit_of(middle);
    Sums half;
    slice.for_each([&](int id, const Chunk& four) {
      if (!(four.highest() >= low)) return;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float amount = measure(four.logits[i]);
        const bool keeps = (four.logits[i] >= low) & kept.keeps(four.logits[i], id + i);
        half.amount += static_cast<double>(keeps ? amount : 0.0f);
        half.above += keeps;
      }
    });
    half = reduce(half, AddSums());
    const uint32_t all = sums.above + sums.within;
    if (half.amount >= target) {
      bracket.low = middle;
      sums.within = half.above - sums.above;
    } else {
      bracket.high = middle - 1;
      sums = {half.amount, half.above, all - half.above};
    }
  }
  return sums;
}

template <typename Measure>
__device__ Cut cut_in_list(const Measure& measure, const Sums& sums, double target) {
  collect();
  uint64_t cut = 0;
  if (leads()) cut = cut_of_thread(measure, static_cast<int>(sums.within), sums.amount, target);
  cut = ~reduce(cut, Maximum());
  return {ranked_logit(cut), ranked_id(cut)};
}

// More tokens of one logit than the list holds: the first of them by id that together reach the target.
static __device__ __noinline__ Cut cut_in_ties(Slice slice, float logit, Cut kept, double wanted) {
  const auto tie = [=](int id, float other) { return other == logit && kept.keeps(other, id) ? 1.0 : 0.0; };
  double count = 0;
  slice.for_each([&](int id, const Chunk& four) {
    for (int i = 0; i < 4; ++i) count += tie(id + i, four.logits[i]);
  });
  reduce(count, Add());
  const int id = locate(slice, tie, fmax(ceil(wanted), 1.0) - 1);
  __syncthreads();  // the sums of the warps are read until here
  return {logit, static_cast<int>(reduce(static_cast<uint64_t>(id + 1), Maximum())) - 1};
}

// What is in a bracket that histograms have narrowed, as gather() leaves it.
struct Narrowed {
  Bracket bracket;
  Sums sums;
  double target = 0;        // of the amounts
  double total = 0;         // by weight: of all tokens
  bool everything = false;  // all tokens together stay below the target
};

template <typename Measure>
__device__ __noinline__ Narrowed narrow(Slice slice, Measure measure, Weigher weigh, double target, uint32_t floor,
                                        Cut kept) {
  const uint32_t highest = key_of(weigh.highest());
  Narrowed out{{floor, highest}, {}, target};
  for (int level = 0; level < 2; ++level) {
    const Bins bins(out.bracket, weigh);
    double above = fill(slice, measure, weigh, out.bracket, kept, Measure::kWeighs && level == 0);
    if (Measure::kWeighs && level == 0) {
      out.total = above;
      out.target = fmax(target * above, 1e-300);
      above = 0;
    }
    const Enclosure enclosure = enclose(measure, bins, above, out.target);
    if (enclosure.first < 0) {
      out.everything = level == 0;
      break;
    }
    if (level == 0 && enclosure.through <= kListSize - 32) {  // a margin for what narrowed() widens
      out.bracket.low = narrowed(out.bracket, bins, enclosure, weigh).low;
      break;
    }
    out.bracket = narrowed(out.bracket, bins, enclosure, weigh);
    if (enclosure.through - enclosure.before <= kListSize / 2) break;
  }
  if (!out.everything) out.sums = gather(slice, measure, out.bracket, kept);
  return out;
}

/// The shortest leading part of the ranking, among the tokens that `kept` keeps, that amounts to `target`: to a number
/// of tokens, or to a share of their weight. Tokens with keys under `floor` are known to lie behind it. `few`: there
/// may well be no more tokens above the floor than the list holds. All threads of all blocks call.
template <typename Measure>
__device__ __noinline__ Found find_cut(Slice slice, Measure measure, Weigher weigh, double target, uint32_t floor,
                                       Cut kept, bool few) {
  Narrowed place{{floor, key_of(weigh.highest())}, {}, target};
  if (few) place.sums = gather(slice, measure, place.bracket, kept);
  if (!few || !place.sums.listed()) place = narrow(slice, measure, weigh, target, floor, kept);
  Found found{Found::Kind::kEverything, 0, place.total};
  if (place.everything) return found;
  if (place.sums.listed() && place.sums.above == 0) {
    collect();
    found.kind = Found::Kind::kList;
    found.count = static_cast<int>(place.sums.within);
    return found;
  }
  found.kind = Found::Kind::kCut;
  if (!place.sums.listed()) {
    place.sums = bisect(slice, measure, place.bracket, kept, place.sums, place.target);
    if (!place.sums.listed()) {
      const float logit = place.bracket.low_logit();
      const double wanted = (place.target - place.sums.amount) / measure(logit);
      found.cut = cut_in_ties(slice, logit, kept, wanted);
      return found;
    }
    place.sums = gather(slice, measure, place.bracket, kept);
  }
  found.cut = cut_in_list(measure, place.sums, place.target);
  return found;
}

}  // namespace inflight::cuda::sampling
