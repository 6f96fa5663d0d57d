#pragma once

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/context_attention.cuh"
#include "kernels/cuda/context_attention_quad.cuh"
#include "kernels/cuda/context_attention_shape.cuh"

namespace inflight::cuda::context_attention_kernels {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2e = 1.4426950408889634f;

// One warpgroup: 64 rows of each item. Each thread has parts of two rows, 8 apart.
template <typename S, bool kBiased>
class Consumer {
 public:
  __device__ Consumer(const ContextAttentionParams& params, Shared<S>& shared)
      : params_(params), shared_(shared), warpgroup_(threadIdx.x / 128 - 1) {
    const int first_row = warpgroup_ * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    first_token_ = warpgroup_ * 64 / params.group;
    last_token_ = (warpgroup_ * 64 + 63) / params.group;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      token_[r] = (first_row + 8 * r) / params.group;
      head_[r] = (first_row + 8 * r) % params.group;
    }
  }

  __device__ void run() {
    if (warpgroup_ == S::kWarpgroups - 1) pass_turn();  // the first warpgroup begins
    take_item(item_);
    while (item_.num_tokens > 0) {
      if (!has_work(item_)) {
        if (item_.has_keys()) sit_out();
        store_zeros();
        take_item(item_);
        continue;
      }
      begin_rows();
      clear_out();
      first_scores();
      attend();
    }
  }

 private:
  static constexpr int kOut = S::kOutColumns / 2;

  __device__ void take_item(Item& item) {
    barrier_wait(&shared_.item_full[slot_.stage()], slot_.parity());
    item = shared_.items[slot_.stage()];
    barrier_arrive(&shared_.item_empty[slot_.stage()]);
    slot_.advance();
  }

  __device__ bool has_work(const Item& item) const { return item.has_keys() && first_token_ < item.num_tokens; }

  __device__ void begin_rows() {
    lowest_position_ = item_.first_position + first_token_;
    highest_position_ = item_.first_position + min(last_token_, item_.num_tokens - 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      position_[r] = item_.first_position + token_[r];
      top_[r] = -kInfinity;
      sum_[r] = 0.0f;
      if constexpr (kBiased)
        slope_[r] =
            params_.alibi_slopes ? params_.alibi_slopes[item_.kv_head * params_.group + head_[r]] * kLog2e : 0.0f;
    }
  }

  __device__ __forceinline__ void clear_out() {
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part)
#pragma unroll
      for (int i = 0; i < kOut; ++i) out_[part][i] = 0.0f;
  }

  // Items one after another while they have work for this warpgroup, as one pipeline: the scores of the next tile, of
  // the next item's first one too, are made while the weights of this tile multiply the values, and turned into
  // weights while other warpgroups multiply. Begins with the weights of the item's first tile, ends between two items.
  __device__ void attend() {
    for (;;) {
      const int last = item_.end - 1, seen = highest_position_ + 1 - last * S::kKeys;
      const bool is_short = S::kShortKeys < S::kKeys && item_.begin < last && seen <= S::kShortKeys;
#pragma unroll 1
      for (int tile = item_.begin + 1; tile < last; ++tile) step<S::kKeys>(tile);
      if (is_short) {
        step<S::kShortKeys>(last);
      } else if (item_.begin < last) {
        step<S::kKeys>(last);
      }
      release(&shared_.query_empty[query_ring_.stage()]);
      query_ring_.advance();
      Item next;
      take_item(next);
      if (next.num_tokens == 0 || !has_work(next) || S::kQueryStages == 1) return finish(next, is_short);
      if (is_short) {
        hand_over<S::kShortKeys>(next);
      } else {
        hand_over<S::kKeys>(next);
      }
    }
  }

  // The last values of the item.
  __device__ __forceinline__ void finish(const Item& next, bool is_short) {
#pragma unroll
    for (int k = S::kShortKeys / 16; k < S::kKeys / 16; ++k)
#pragma unroll
      for (uint32_t& weight : weights_[k]) weight = is_short ? 0 : weight;
    add_values<S::kKeys>();
    products_wait<0>();
    pin_out();
    release_values();
    store(item_, sum_);
    item_ = next;
  }

  // The last values of the item and the first scores of the next.
  template <int kSeen>
  __device__ __forceinline__ void hand_over(const Item& next) {
    const Item done = item_;
    const float sums[2] = {sum_[0], sum_[1]};
    float scores[S::kKeys / 2], factor[2];
    item_ = next;
    begin_rows();
    wait_for_scores(true);
    make_scores<S::kKeys>(scores);
    add_values<kSeen>();
    pass_turn();
    products_wait<1>();
    pin(scores);
    release_keys();
    soften<S::kKeys>(scores, item_.begin, factor);
    products_wait<0>();
    pin_out();
    release_values();
    pack<S::kKeys>(scores);
    store(done, sums);
    clear_out();
  }

  // Takes part in the barriers of an item that has no row for this warpgroup.
  __device__ void sit_out() {
#pragma unroll 1
    for (int tile = item_.begin; tile <= item_.end; ++tile) {
      if (tile < item_.end) {
        wait_for_scores(tile == item_.begin);
        pass_turn();
        release_keys();
      }
      if (tile == item_.begin) continue;
      barrier_wait(&shared_.values_full[value_ring_.stage()], value_ring_.parity());
      release_values();
    }
    release(&shared_.query_empty[query_ring_.stage()]);
    query_ring_.advance();
  }

  __device__ __forceinline__ void first_scores() {
    float scores[S::kKeys / 2], factor[2];
    wait_for_scores(true);
    make_scores<S::kKeys>(scores);
    pass_turn();
    products_wait<0>();
    pin(scores);
    release_keys();
    soften<S::kKeys>(scores, item_.begin, factor);
    pack<S::kKeys>(scores);
  }

  // Of a tile only the first kSeen keys count; the one before it counts in full.
  template <int kSeen>
  __device__ __forceinline__ void step(int tile) {
    float scores[kSeen / 2], factor[2];
    wait_for_scores(false);
    make_scores<kSeen>(scores);
    add_values<S::kKeys>();
    pass_turn();
    products_wait<1>();
    pin(scores);
    release_keys();
    soften<kSeen>(scores, tile, factor);
    products_wait<0>();
    pin_out();
    release_values();
    pack<kSeen>(scores);
    rescale(factor);
  }

  // One turn a tile: until its operands have come and the other warpgroups have had theirs.
  __device__ __forceinline__ void wait_for_scores(bool is_first) {
    if (is_first) barrier_wait(&shared_.query_full[query_ring_.stage()], query_ring_.parity());
    barrier_wait(&shared_.keys_full[key_ring_.stage()], key_ring_.parity());
    take_turn();
  }

  template <int kSeen>
  __device__ __forceinline__ void make_scores(float (&scores)[kSeen / 2]) {
    const uint64_t queries = panel_descriptor(shared_.query[query_ring_.stage()] + warpgroup_ * 64 * kPanelRowBytes, 0);
    const uint64_t keys = panel_descriptor(shared_.keys[key_ring_.stage()], 0);
    products_begin();
#pragma unroll
    for (int k = 0; k < S::kHeadSize / 16; ++k) {
      const int panel = k / 4, in_panel = k % 4 * 32;
      Product<kSeen>::rows_by_rows(scores, advance(queries, panel * S::kQueryPanelBytes + in_panel),
                                   advance(keys, panel * S::kPanelBytes + in_panel), k > 0);
    }
    products_commit();
  }

  // The weights of a tile's first kSeen keys times its values.
  template <int kSeen>
  __device__ __forceinline__ void add_values() {
    barrier_wait(&shared_.values_full[value_ring_.stage()], value_ring_.parity());
    const uint64_t values = panel_descriptor(shared_.values[value_ring_.stage()], S::kPanelBytes);
    pin_out();  // no copies of registers past products_begin(): they would make the products wait for each other
#pragma unroll
    for (int k = 0; k < kSeen / 16; ++k) pin(weights_[k]);
    products_begin();
#pragma unroll
    for (int k = 0; k < kSeen / 16; ++k)
#pragma unroll
      for (int part = 0; part < S::kOutParts; ++part)
        Product<S::kOutColumns>::registers_by_columns(
            out_[part], weights_[k],
            advance(values, k * 16 * kPanelRowBytes + part * (S::kOutColumns / kPanelColumns) * S::kPanelBytes));
    products_commit();
  }

  // Scores become weights 2^(score - top) in place, with the row's largest score so far as its top; what was summed
  // before must be multiplied by `factor`. While scores stay within 2^kSlack of the old top it is kept: factor 1.
  template <int kSeen>
  __device__ __forceinline__ void soften(float (&scores)[kSeen / 2], int tile, float (&factor)[2]) {
    constexpr float kSlack = 8.0f;
    if constexpr (kBiased) bias<kSeen>(scores, tile);
    if (needs_mask(tile)) mask<kSeen>(scores, tile);
    const float scale = kBiased ? 1.0f : params_.scale;
    float highest[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int i = 0; i < kSeen / 2; ++i) highest[i / 2 % 2] = fmaxf(highest[i / 2 % 2], scores[i]);
    float origin[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float high = quad_max(highest[r]) * scale;
      const float top = high > top_[r] + kSlack ? high : top_[r];
      origin[r] = top == -kInfinity ? 0.0f : top;
      factor[r] = exp2_approx(top_[r] - origin[r]);
      top_[r] = top;
      sum_[r] *= factor[r];
    }
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kSeen / 2; ++i) {
      scores[i] = exp2_approx(fmaf(scores[i], scale, -origin[i / 2 % 2]));
      sums[i / 2 % 2] += scores[i];
    }
    sum_[0] += sums[0];
    sum_[1] += sums[1];
  }

  // Scores in powers of two with soft cap and slopes, unmasked.
  template <int kSeen>
  __device__ __forceinline__ void bias(float (&scores)[kSeen / 2], int tile) {
    const float cap = params_.soft_cap;
    const float to_exponent = cap > 0.0f ? 2.0f * kLog2e / cap : 0.0f;
    const int column = tile * S::kKeys + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kSeen / 2; ++i) {
      float score = scores[i] * params_.scale;
      // tanh(x) = 1 - 2 / (e^(2x) + 1)
      if (cap > 0.0f) score = cap - __fdividef(2.0f * cap, exp2_approx(score * to_exponent) + 1.0f);
      const int r = i / 2 % 2, distance = column + i / 4 * 8 + i % 2 - position_[r];
      scores[i] = fmaf(slope_[r], static_cast<float>(distance), score * kLog2e);
    }
  }

  __device__ __forceinline__ bool needs_mask(int tile) const {
    const int first = tile * S::kKeys;
    return first + S::kKeys - 1 > lowest_position_ ||
           (params_.window > 0 && first <= highest_position_ - params_.window);
  }

  template <int kSeen>
  __device__ __forceinline__ void mask(float (&scores)[kSeen / 2], int tile) {
    const int column = tile * S::kKeys + threadIdx.x % 4 * 2;
    const int last[2] = {position_[0] - column, position_[1] - column};
    const int window = params_.window > 0 ? params_.window : 1 << 30, sinks = params_.sinks - column;
#pragma unroll
    for (int i = 0; i < kSeen / 2; ++i) {
      const int key = i / 4 * 8 + i % 2, behind = last[i / 2 % 2] - key;
      if (behind < 0 || (behind >= window && key >= sinks)) scores[i] = -kInfinity;
    }
  }

  template <int kSeen>
  __device__ __forceinline__ void pack(const float (&scores)[kSeen / 2]) {
#pragma unroll
    for (int i = 0; i < kSeen / 4; ++i) weights_[i / 4][i % 4] = to_bf16_pair(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
    if (!__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part)
#pragma unroll
      for (int i = 0; i < kOut; ++i) out_[part][i] *= factor[i / 2 % 2];
  }

  __device__ __forceinline__ void pin_out() {
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part) pin(out_[part]);
  }

  __device__ __forceinline__ void store(const Item& item, const float (&row_sums)[2]) {
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(row_sums[r]);
      inverse[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) store_row(out_row(item, r), r, inverse[r], token_[r] < item.num_tokens);
  }

  // The queries of a padding sequence, which see no key. Rows that are not this item's stay as they are.
  __device__ void store_zeros() {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      for (int i = threadIdx.x % 4; i < S::kHeadSize / 8 && token_[r] < item_.num_tokens; i += 4)
        reinterpret_cast<uint4*>(out_row(item_, r))[i] = make_uint4(0, 0, 0, 0);
  }

  __device__ __forceinline__ uint32_t* out_row(const Item& item, int r) const {
    const int64_t token = item.first_row + token_[r];
    const int64_t row = token * params_.num_heads + item.kv_head * params_.group + head_[r];
    return static_cast<uint32_t*>(params_.out) + row * (S::kHeadSize / 2);
  }

  __device__ __forceinline__ void store_row(uint32_t* row, int r, float inverse, bool valid) {
    constexpr int kGroups = S::kOutColumns / 32;  // of four words a thread
    const int quad = threadIdx.x % 4;
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part) {
      const float* out = out_[part] + 2 * r;
      uint32_t* columns = row + part * (S::kOutColumns / 2);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = out + (group * 4 + i) * 4;
          words[i] = to_bf16_pair(pair[0] * inverse, pair[1] * inverse);
        }
        transpose_quad(words);
        auto* to = reinterpret_cast<uint4*>(columns + group * 16) + quad;
        if (valid) *to = make_uint4(words[0], words[1], words[2], words[3]);
      }
#pragma unroll
      for (int i = kGroups * 4; i < S::kOutColumns / 8; ++i)
        if (valid) columns[i * 4 + quad] = to_bf16_pair(out[i * 4] * inverse, out[i * 4 + 1] * inverse);
    }
  }

  __device__ __forceinline__ void release(uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ void release_keys() {
    release(&shared_.keys_empty[key_ring_.stage()]);
    key_ring_.advance();
  }
  __device__ __forceinline__ void release_values() {
    release(&shared_.values_empty[value_ring_.stage()]);
    value_ring_.advance();
  }

  // The warpgroups' products go to the matrix units in turn.
  __device__ __forceinline__ void take_turn() { named_barrier_sync(1 + warpgroup_, 256); }
  __device__ __forceinline__ void pass_turn() { named_barrier_arrive(1 + (warpgroup_ + 1) % S::kWarpgroups, 256); }

  const ContextAttentionParams& params_;
  Shared<S>& shared_;
  int warpgroup_;
  int first_token_, last_token_;  // of this warpgroup's rows, from the tile's first
  int token_[2], head_[2];        // of this thread's: token of the tile, head of the group
  Item item_;
  int lowest_position_, highest_position_;  // of this warpgroup's rows
  int position_[2];
  float slope_[2], top_[2], sum_[2];
  uint32_t weights_[S::kKeys / 16][4];
  float out_[S::kOutParts][kOut];
  Ring<kItemSlots> slot_;
  Ring<S::kStages> key_ring_, value_ring_;
  Ring<S::kQueryStages> query_ring_;
};

}  // namespace inflight::cuda::context_attention_kernels
