#pragma once

#include "inflight/ops/activation.h"
#include "kernels/cuda/activation_functions.cuh"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

/// Products of some rows: each block takes 64 rows of the weight, or a part of their sum over K that it shares with the
/// other blocks of its cluster, and ends. What the blocks of a cluster have summed goes into the shared memory of the
/// one that stores it, and counts as bytes of a barrier there: the only barrier of the whole cluster is at the start.
namespace inflight::cuda::slim_linear_kernels {

inline constexpr int kRows = 64;          // of the weight in a tile
inline constexpr int kPanelColumns = 64;  // of K: 128 bytes, a row of the widest swizzle
inline constexpr int kRowBytes = 2 * kPanelColumns;
inline constexpr int kConsumers = 128;            // threads: a warpgroup that multiplies,
inline constexpr int kThreads = kConsumers + 32;  // and a warp that copies

struct Args {
  const uint16_t* bias;  // [N] or null; null if gated
  void* out;             // [M, N] bfloat16, or float32
  int m, n, k;
  int split_log2;  // of the blocks of a cluster, which share a tile's sum over K
  Activation activation;
  bool gated;
  bool float_out;
  bool add;  // the rounded product to what out holds; neither gated nor float32
};

// The sizes of one kernel: up to kTokens rows of x; so many blocks find place on a multiprocessor. Two let the next
// kernel's blocks begin to read their weights beside them; one alone has more under way. A gated tile's rows are one
// half gate, one half up, of the same outputs.
template <int kTokens_, int kBlocksPerSm_>
struct Shape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kPanels = 2;  // of a stage
  static constexpr int kChunk = kPanels * kPanelColumns;
  static constexpr int kGroups = kTokens / 8;                // of eight rows of x, the unit that blocks share out
  static constexpr int kPlaces = kGroups > 4 ? 8 : kGroups;  // for groups, shared out: a power of two, some empty
  static constexpr int kWeightPanel = kRows * kRowBytes, kXPanel = kTokens * kRowBytes;
  static constexpr int kStageBytes = kPanels * (kWeightPanel + kXPanel);
  static constexpr int kReceivedBytes = (kPlaces - 1) * kConsumers * 16;
  static constexpr int kBudget = 228 * 1024 / kBlocksPerSm - 1024 - 256;  // a block takes 1 KB more; 256: barriers
  static constexpr int kStages = (kBudget - kReceivedBytes) / kStageBytes;
  static constexpr int kSumStride = kRows + 4;                             // floats: a fragment's 32 lie in 32 banks
  static_assert(kTokens % 8 == 0 && kXPanel % 1024 == 0 && kStages >= 2);  // 1024: a pattern of the swizzle
  static_assert((kPlaces & (kPlaces - 1)) == 0 && kGroups <= kPlaces);
  static_assert(kTokens * kSumStride * 4 <= kStages * kStageBytes);
};

template <typename S>
struct Shared {
  union {
    struct {
      unsigned char weight[S::kStages][S::kPanels][S::kWeightPanel];
      unsigned char x[S::kStages][S::kPanels][S::kXPanel];
    };
    float sums[S::kTokens][S::kSumStride];  // once the ring is empty
  };
  float4 received[S::kPlaces - 1][kConsumers];  // other blocks' sums: [block, group] in the order of threads
  uint64_t full[S::kStages], empty[S::kStages], all_received;
};

// What one block sums, chunks of K of one tile, and of which rows of x it stores the total.
template <typename S>
struct Part {
  __device__ explicit Part(const Args& args) : split(1 << args.split_log2) {
    const int chunks = (args.k + S::kChunk - 1) / S::kChunk, block = static_cast<int>(blockIdx.x);
    tile = block >> args.split_log2;
    rank = block & (split - 1);
    begin = chunks * rank >> args.split_log2;
    count = (chunks * (rank + 1) >> args.split_log2) - begin;
    groups = S::kPlaces >> args.split_log2;
    groups_log2 = __ffs(groups) - 1;
  }
  // Which block stores a group, and where in another block's memory this one's sums of it go, or its in this one's.
  __device__ __forceinline__ int storer(int group) const { return group >> groups_log2; }
  __device__ __forceinline__ int slot(int from, int to, int group) const {
    return (from - (from > to)) * groups + (group & (groups - 1));
  }
  __device__ __forceinline__ int received_bytes() const {
    const int own = max(0, min(groups, S::kGroups - rank * groups));
    return (split - 1) * own * kConsumers * 16;
  }
  int split, tile, rank, begin, count;
  int groups, groups_log2;  // that the block stores, as far as there are: from rank * groups on
};

template <typename S>
__device__ void init_barriers(const Part<S>& part, Shared<S>& shared) {
  for (int stage = 0; stage < S::kStages; ++stage) {
    barrier_init(&shared.full[stage], 1);
    barrier_init(&shared.empty[stage], kConsumers / 32);
  }
  barrier_init(&shared.all_received, 1);
  barrier_init_fence();
  barrier_expect(&shared.all_received, part.received_bytes());
}

template <typename S>
class Producer {
 public:
  __device__ Producer(const CUtensorMap& x, const CUtensorMap& weight, const Args& args, const Part<S>& part,
                      Shared<S>& shared)
      : x_(x), weight_(weight), args_(args), part_(part), shared_(shared) {}

  // The weight needs no earlier kernel: a ring full of it is on its way before x may be read.
  __device__ void begin() {
    for (int chunk = 0; chunk < S::kStages && chunk < part_.count; ++chunk) copy_weight(chunk, chunk);
  }
  __device__ void run() {
    wait_for_previous();
    for (int chunk = 0; chunk < S::kStages && chunk < part_.count; ++chunk) copy_x(chunk, chunk);
    Ring<S::kStages> ring;
    for (int chunk = S::kStages; chunk < part_.count; ++chunk, ring.advance()) {
      barrier_wait(&shared_.empty[ring.stage()], ring.parity());
      copy_weight(chunk, ring.stage());
      copy_x(chunk, ring.stage());
    }
  }

 private:
  __device__ void copy_weight(int chunk, int stage) {
    uint64_t* const full = &shared_.full[stage];
    const int row = part_.tile * (args_.gated ? kRows / 2 : kRows);
    barrier_expect(full, S::kStageBytes);
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel) {
      unsigned char* const to = shared_.weight[stage][panel];
      copy_box(to, weight_, full, column_of(chunk, panel), row);
      copy_box(to + S::kWeightPanel / 2, weight_, full, column_of(chunk, panel),
               row + (args_.gated ? args_.n : kRows / 2));
    }
  }
  __device__ void copy_x(int chunk, int stage) {
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel)
      copy_box(shared_.x[stage][panel], x_, &shared_.full[stage], column_of(chunk, panel), 0);
  }
  __device__ __forceinline__ int column_of(int chunk, int panel) const {
    return (part_.begin + chunk) * S::kChunk + panel * kPanelColumns;
  }

  const CUtensorMap &x_, &weight_;
  const Args& args_;
  const Part<S>& part_;
  Shared<S>& shared_;
};

template <typename S>
class Consumer {
 public:
  __device__ Consumer(const Args& args, const Part<S>& part, Shared<S>& shared)
      : args_(args), part_(part), shared_(shared) {}

  __device__ void run() {
    wait_for_previous();
    const uint4 first_old = old_of(static_cast<int>(threadIdx.x));
    multiply();
    if (part_.split > 1) {
      cluster_wait();  // every block's barriers are ready
      send();
      barrier_wait(&shared_.all_received, 0);
      add_received();
    }
    named_barrier_sync(1, kConsumers);  // nobody reads the ring any more
    lay_down();
    named_barrier_sync(1, kConsumers);
    store(first_old);
  }

 private:
  static constexpr int kWide = kVectorSize;  // outputs that a thread stores at a time

  __device__ __forceinline__ void multiply() {
    Ring<S::kStages> ring;
#pragma unroll 1
    for (int chunk = 0; chunk < part_.count; ++chunk, ring.advance()) {
      const int stage = ring.stage();
      barrier_wait(&shared_.full[stage], ring.parity());
      products_begin();
#pragma unroll
      for (int panel = 0; panel < S::kPanels; ++panel) {
        const uint64_t a = panel_descriptor(shared_.weight[stage][panel], 0);
        const uint64_t b = panel_descriptor(shared_.x[stage][panel], 0);
#pragma unroll
        for (int k = 0; k < kPanelColumns / 16; ++k)
          Product<S::kTokens>::rows_by_rows(sum_, advance(a, k * 32), advance(b, k * 32),
                                            chunk > 0 || panel > 0 || k > 0);
      }
      products_commit();
      products_wait<0>();  // memory is what is waited for: the stage is to be free as soon as can be
      pin(sum_);
      if (threadIdx.x % 32 == 0) barrier_arrive(&shared_.empty[stage]);
    }
  }

  // To each block of the cluster the sums of the rows of x that it stores.
  __device__ __forceinline__ void send() {
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      const int to = part_.storer(group);
      if (to == part_.rank) continue;
      send_to_block(to, &shared_.received[part_.slot(part_.rank, to, group)][threadIdx.x], &shared_.all_received,
                    make_float4(sum_[4 * group], sum_[4 * group + 1], sum_[4 * group + 2], sum_[4 * group + 3]));
    }
  }

  // In the order of K.
  __device__ __forceinline__ void add_received() {
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      if (part_.storer(group) != part_.rank) continue;
      const float4 own = make_float4(sum_[4 * group], sum_[4 * group + 1], sum_[4 * group + 2], sum_[4 * group + 3]);
      float4 total{};
      for (int block = 0; block < part_.split; ++block) {
        const float4 part =
            block == part_.rank ? own : shared_.received[part_.slot(block, part_.rank, group)][threadIdx.x];
        total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
      }
      sum_[4 * group] = total.x, sum_[4 * group + 1] = total.y;
      sum_[4 * group + 2] = total.z, sum_[4 * group + 3] = total.w;
    }
  }

  __device__ __forceinline__ void lay_down() {
    const int row = static_cast<int>(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4), token = threadIdx.x % 4 * 2;
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      if (part_.storer(group) != part_.rank) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) shared_.sums[group * 8 + token + j % 2][row + j / 2 * 8] = sum_[4 * group + j];
    }
  }

  // An item is kWide outputs of one token; the block's own go round its threads.
  struct Item {
    int token, row, column;
  };
  __device__ __forceinline__ int items_of_token_log2() const {
    static_assert(kRows / kWide == 1 << 3);
    return args_.gated ? 2 : 3;
  }
  __device__ __forceinline__ Item item_of(int i) const {
    const int log2 = items_of_token_log2(), row = (i & ((1 << log2) - 1)) * kWide;
    return {part_.rank * part_.groups * 8 + (i >> log2), row, (part_.tile << log2) * kWide + row};
  }
  __device__ __forceinline__ bool there(const Item& item) const {
    return item.token < args_.m && item.column < args_.n;
  }
  __device__ __forceinline__ int64_t place_of(const Item& item) const {
    return static_cast<int64_t>(item.token) * args_.n + item.column;
  }

  __device__ __forceinline__ uint4 old_of(int i) const {
    const Item item = item_of(i);
    return args_.add && there(item)
               ? *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(args_.out) + place_of(item))
               : uint4{};
  }

  __device__ __forceinline__ void read(int token, int row, float (&values)[kWide]) const {
#pragma unroll
    for (int i = 0; i < kWide; i += 4)
      *reinterpret_cast<float4*>(values + i) = *reinterpret_cast<const float4*>(&shared_.sums[token][row + i]);
  }

  __device__ __forceinline__ void store(const uint4& first_old) const {
    const int items = part_.groups * 8 << items_of_token_log2();
    for (int i = static_cast<int>(threadIdx.x); i < items; i += kConsumers) {
      const Item item = item_of(i);
      if (!there(item)) continue;
      alignas(16) float values[kWide], others[kWide];
      read(item.token, item.row, values);
      if (args_.bias) {
        unpack8(__ldg(reinterpret_cast<const uint4*>(args_.bias + item.column)), others);
#pragma unroll
        for (int v = 0; v < kWide; ++v) values[v] += others[v];
      }
      if (args_.gated) {
        read(item.token, kRows / 2 + item.row, others);
        gate(values, others);
      }
      if (args_.float_out) {
        float4* const to = reinterpret_cast<float4*>(static_cast<float*>(args_.out) + place_of(item));
        to[0] = make_float4(values[0], values[1], values[2], values[3]);
        to[1] = make_float4(values[4], values[5], values[6], values[7]);
        continue;
      }
      if (args_.add) {
        unpack8(i < kConsumers ? first_old : old_of(i), others);
#pragma unroll
        for (int v = 0; v < kWide; ++v) values[v] = round_to_bf16(values[v]) + others[v];
      }
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(args_.out) + place_of(item)) = pack8(values);
    }
  }

  // Both halves were rounded before they are multiplied, as separate ops would.
  __device__ __forceinline__ void gate(float (&values)[kWide], const float (&ups)[kWide]) const {
    switch (args_.activation) {
      case Activation::kSilu: gate_by<Silu>(values, ups); break;
      case Activation::kGelu: gate_by<Gelu>(values, ups); break;
      case Activation::kGeluTanh: gate_by<GeluTanh>(values, ups); break;
      case Activation::kRelu: gate_by<Relu>(values, ups); break;
    }
  }
  template <typename Function>
  static __device__ __forceinline__ void gate_by(float (&values)[kWide], const float (&ups)[kWide]) {
#pragma unroll
    for (int v = 0; v < kWide; ++v) values[v] = Function::apply(round_to_bf16(values[v])) * round_to_bf16(ups[v]);
  }

  const Args& args_;
  const Part<S>& part_;
  Shared<S>& shared_;
  float sum_[S::kTokens / 2];
};

template <typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocksPerSm)
    slim_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap weight, const Args args) {
  let_next_start();
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>(memory);
  const Part<S> part(args);
  Producer<S> producer(x, weight, args, part, shared);
  const bool copies = threadIdx.x == kConsumers;
  if (copies) {
    init_barriers(part, shared);
    producer.begin();
  }
  __syncthreads();
  if (part.split > 1) cluster_arrive();
  if (threadIdx.x < kConsumers) {
    Consumer<S>(args, part, shared).run();
  } else {
    if (copies) producer.run();
    __syncwarp();
    if (part.split > 1) cluster_wait();
  }
}

}  // namespace inflight::cuda::slim_linear_kernels
