// Prints, for each CPU op, its time and how much of the machine it uses: bytes against a measured copy, arithmetic
// against measured multiply-adds. Usage: cpu_bench [threads]

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

namespace {

using namespace inflight;

constexpr double kSecondsPerCase = 0.2;

// Seconds of the fastest run.
double fastest(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  run();
  while (total < kSecondsPerCase) {
    const auto start = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// Bytes read and written a second by a plain copy, with all threads.
double copy_bandwidth(cpu::CpuContext& context) {
  constexpr int64_t kBytes = 128 << 20;
  std::vector<char> from(kBytes, 1), to(kBytes);
  const double seconds = fastest([&] {
    context.parallel_for(kBytes, 1 << 20,
                         [&](int64_t begin, int64_t end) { std::memcpy(&to[begin], &from[begin], end - begin); });
  });
  return 2.0 * kBytes / seconds;
}

// Floating-point operations a second of independent multiply-adds, with all threads.
double arithmetic_peak(cpu::CpuContext& context) {
  constexpr int kChains = 12;
  constexpr int64_t kRounds = 1 << 16;
  const int64_t items = context.threads() * 4;
  volatile float sink = 0;
  const double seconds = fastest([&] {
    context.parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      cpu::Vec sums[kChains];
      for (int c = 0; c < kChains; ++c) sums[c] = cpu::broadcast(static_cast<float>(c));  // else all chains are one
      const cpu::Vec factor = cpu::broadcast(0.999f);
      for (int64_t i = 0; i < (end - begin) * kRounds; ++i)
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) sums[c] = cpu::multiply_add(sums[c], factor, factor);
      for (const cpu::Vec& sum : sums) sink = sum[0];
    });
  });
  return 2.0 * cpu::kLanes * kChains * kRounds * items / seconds;
}

struct Machine {
  cpu::CpuContext& context;
  double bandwidth, peak;

  void report(const std::string& name, double bytes, double operations, const std::function<void()>& run) const {
    const double seconds = fastest(run);
    std::printf("%-44s %10.1f %8.1f %5.0f %% %8.1f %5.0f %%\n", name.c_str(), seconds * 1e6, bytes / seconds / 1e9,
                100 * bytes / seconds / bandwidth, operations / seconds / 1e9, 100 * operations / seconds / peak);
  }
};

struct Buffer {
  Buffer(DType dtype, std::initializer_list<int64_t> dims) : view(nullptr, dtype, dims), memory(view.bytes() / 4 + 1) {
    view.data = memory.data();
    static std::minstd_rand engine;
    // Small positive numbers, read as float32 and as pairs of 16-bit numbers alike.
    for (uint32_t& word : memory) word = 0x3c003c00u + engine() % 256;
  }
  Buffer(const std::vector<int32_t>& values) : Buffer(DType::kInt32, {static_cast<int64_t>(values.size())}) {
    std::memcpy(memory.data(), values.data(), values.size() * 4);
  }
  Buffer(const Buffer&) = delete;
  operator TensorView() const { return view; }

  TensorView view;
  std::vector<uint32_t> memory;
};

void bench_linear(const Machine& machine) {
  for (const DType dtype : {DType::kBfloat16, DType::kFloat16, DType::kFloat32})
    for (const int64_t m : {1, 4, 32, 128}) {
      const int64_t n = 4096, k = 4096;
      const Buffer x(DType::kFloat32, {m, k}), weight(dtype, {n, k}), out(DType::kFloat32, {m, n});
      machine.report(concat("linear ", name_of(dtype), " M=", m, " N=", n, " K=", k), weight.view.bytes(),
                     2.0 * m * n * k, [&] { cpu::op_table().linear({x, weight, {}, out}, machine.context); });
    }
}

void bench_rows(const Machine& machine) {
  for (const int64_t m : {1, 512}) {
    const int64_t h = 4096;
    const Buffer x(DType::kFloat32, {m, h}), residual(DType::kFloat32, {m, h}), out(DType::kFloat32, {m, h});
    const Buffer wide(DType::kFloat32, {m, 2 * h}), weight(DType::kFloat32, {h});
    const double row_bytes = 4.0 * m * h;
    machine.report(concat("rms_norm with residual M=", m, " H=", h), 4 * row_bytes, 5.0 * m * h,
                   [&] { cpu::op_table().rms_norm({x, residual, weight, out}, machine.context); });
    machine.report(concat("layer_norm M=", m, " H=", h), 2 * row_bytes, 7.0 * m * h,
                   [&] { cpu::op_table().layer_norm({x, {}, weight, weight, out}, machine.context); });
    machine.report(concat("silu gated M=", m, " N=", h), 3 * row_bytes, 26.0 * m * h,
                   [&] { cpu::op_table().gated_activation({wide, out}, machine.context); });
    machine.report(concat("add M=", m, " N=", h), 3 * row_bytes, 1.0 * m * h,
                   [&] { cpu::op_table().add({x, residual, out}, machine.context); });
  }
}

// `sequences` sequences of `length` tokens, the last `queries` of each new.
void bench_attention(const Machine& machine, int sequences, int queries, int length, DType dtype) {
  const int heads = 32, kv_heads = 8, d = 128, block_size = 32, width = (length + block_size - 1) / block_size;
  std::vector<int32_t> positions, owners, offsets = {0}, lengths(sequences, length), blocks(sequences * width);
  for (int s = 0; s < sequences; ++s) {
    for (int i = length - queries; i < length; ++i) positions.push_back(i), owners.push_back(s);
    offsets.push_back(static_cast<int32_t>(positions.size()));
  }
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  const int64_t tokens = positions.size();
  const Buffer keys(dtype, {sequences * width, kv_heads, block_size, d}),
      values(dtype, {sequences * width, kv_heads, block_size, d});
  const Buffer q(DType::kFloat32, {tokens, heads * d}), out(DType::kFloat32, {tokens, heads * d});
  const Buffer position_list(positions), owner_list(owners), offset_list(offsets), length_list(lengths);
  Buffer tables(blocks);
  tables.view = TensorView(tables.memory.data(), DType::kInt32, {sequences, width});
  BatchView batch;
  batch.token_ids = batch.positions = position_list;
  batch.token_sequences = owner_list;
  batch.query_offsets = offset_list;
  batch.context_lengths = length_list;
  batch.block_tables = tables;
  batch.max_context_length = length;
  const KvCacheView cache{keys, values};
  const double pairs = sequences * (queries * (length - queries) + queries * (queries + 1) / 2.0);
  machine.report(concat("attention ", name_of(dtype), " S=", sequences, " Q=", queries, " context=", length),
                 2.0 * size_of(dtype) * sequences * length * kv_heads * d, pairs * heads * d * 4,
                 [&] { cpu::op_table().attention({q, cache, {}, 0.09f, 0, 0, out}, batch, machine.context); });
}

void bench_sampling(const Machine& machine) {
  const int64_t rows = 8, vocabulary = 128256;
  SamplingRow greedy, drawn, top_k, top_p;
  greedy.temperature = 0;
  top_k.top_k = 50;
  top_p.top_p = 0.9f;
  std::normal_distribution<float> normal(0, 3);
  std::minstd_rand engine;
  std::vector<float> fresh(rows * vocabulary);
  for (float& logit : fresh) logit = normal(engine);
  const Buffer logits(DType::kFloat32, {rows, vocabulary});
  std::memcpy(logits.view.data, fresh.data(), logits.view.bytes());
  std::vector<int32_t> tokens(rows);
  std::vector<float> log_probs(rows);
  for (const auto& [name, row] :
       {std::pair{"greedy", greedy}, {"drawn", drawn}, {"top_k 50", top_k}, {"top_p 0.9", top_p}}) {
    const std::vector<SamplingRow> all(rows, row);
    machine.report(concat("sample ", name, " L=", rows, " V=", vocabulary), logits.view.bytes(), 0,
                   [&] { cpu::op_table().sample({logits, all, tokens, log_probs}, machine.context); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  cpu::CpuContext context(argc > 1 ? std::atoi(argv[1]) : cpu::default_threads());
  const Machine machine{context, copy_bandwidth(context), arithmetic_peak(context)};
  const double dispatch = fastest([&] {
    for (int i = 0; i < 1000; ++i) context.parallel_for(context.threads(), 1, [](int64_t, int64_t) {});
  });
  std::printf("%d threads, copy %.1f GB/s, multiply-add peak %.1f GFLOP/s, parallel_for %.2f us\n", context.threads(),
              machine.bandwidth / 1e9, machine.peak / 1e9, dispatch * 1e3);
  std::printf("%-44s %10s %8s %7s %8s %7s\n", "op", "us", "GB/s", "", "GFLOP/s", "");
  bench_linear(machine);
  bench_rows(machine);
  for (const DType dtype : {DType::kFloat32, DType::kBfloat16}) {
    bench_attention(machine, 8, 1, 2048, dtype);
    bench_attention(machine, 1, 128, 1024, dtype);
  }
  bench_sampling(machine);
}
