// Generation attention reads each key and value once and does little else: bytes count.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_data.h"
#include "kernels/cuda/attention_parts.h"

namespace inflight::bench {
namespace {

constexpr int64_t kBlockSize = 64;
constexpr double kSustainedSeconds = 0.5;

struct Heads {
  int64_t query, kv, size;
};

struct Workload {
  std::string name;              // "S 64, context 1024"
  std::vector<int32_t> lengths;  // tokens of each sequence
  Heads heads;
};

std::vector<int32_t> skewed(int32_t longest, int count, int32_t rest) {
  std::vector<int32_t> out(count, rest);
  out[count / 2] = longest;
  return out;
}

int64_t blocks_of(int64_t length) { return (length + kBlockSize - 1) / kBlockSize; }

// The step's arrays, and as many caches and rows as the runs rotate among.
class GenerationStep {
 public:
  GenerationStep(const Workload& work, int rotations)
      : work_(work), lengths_(int_buffer(work.lengths)), tables_(block_tables(work.lengths)) {
    const auto sequences = static_cast<int64_t>(work.lengths.size());
    int64_t blocks = 0;
    for (const int32_t length : work.lengths) blocks += blocks_of(length);
    for (int i = 0; i < rotations; ++i) {
      keys_.push_back(random_buffer({blocks, work.heads.kv, kBlockSize, work.heads.size}));
      values_.push_back(random_buffer({blocks, work.heads.kv, kBlockSize, work.heads.size}));
    }
    q_ = std::make_unique<Buffer>(random_buffer({sequences, work.heads.query * work.heads.size}));
    out_ = std::make_unique<Buffer>(random_buffer({sequences, work.heads.query * work.heads.size}));
  }

  void plan(cuda::CudaContext& context) const { cuda::plan_generation_attention(batch(), context); }

  void run(int i, cuda::CudaContext& context) const {
    AttentionArgs args;
    args.q = *q_;
    args.cache = {keys_[i], values_[i]};
    args.scale = 1.0f / std::sqrt(static_cast<float>(work_.heads.size));
    args.out = *out_;
    cuda::generation_attention(args, batch(), context);
  }

 private:
  BatchView batch() const {
    BatchView batch;
    batch.context_lengths = lengths_;
    batch.block_tables = tables_;
    batch.num_generation = static_cast<int>(work_.lengths.size());
    return batch;
  }

  // [S, B], every block of the cache dealt out once in random order.
  static Buffer block_tables(const std::vector<int32_t>& lengths) {
    const int64_t width = blocks_of(*std::max_element(lengths.begin(), lengths.end()));
    int64_t blocks = 0;
    for (const int32_t length : lengths) blocks += blocks_of(length);
    std::vector<int32_t> order(blocks), table(lengths.size() * width, -1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    auto next = order.begin();
    for (size_t s = 0; s < lengths.size(); ++s)
      for (int64_t b = 0; b < blocks_of(lengths[s]); ++b) table[s * width + b] = *next++;
    return int_buffer(table, {static_cast<int64_t>(lengths.size()), width});
  }

  Workload work_;
  Buffer lengths_, tables_;
  std::vector<Buffer> keys_, values_;
  std::unique_ptr<Buffer> q_, out_;
};

/// `seconds`: sustained for so long; 0: only timed.
void bench_workload(Bench& bench, const Workload& work, double seconds = 0) {
  const double tokens = std::accumulate(work.lengths.begin(), work.lengths.end(), 0.0);
  const auto sequences = static_cast<double>(work.lengths.size());
  const double cache_bytes = tokens * work.heads.kv * work.heads.size * 2 * 2;
  const double row_bytes = sequences * work.heads.query * work.heads.size * 2 * 2;
  const double flops = tokens * work.heads.query * work.heads.size * 4;
  const int rotations = std::clamp(static_cast<int>(4e8 / cache_bytes), 2, 64);  // eight times the L2 cache
  const GenerationStep step(work, rotations);
  const std::string shape =
      concat(work.name, ", heads ", work.heads.query, "/", work.heads.kv, ", D ", work.heads.size);
  step.plan(bench.context());  // serves all layers of a step
  const Case what{"generation_attention", shape, cache_bytes + row_bytes, flops};
  const auto run = [&](int i) { step.run(i, bench.context()); };
  if (seconds > 0)
    bench.measure_sustained(what, run, rotations, seconds);
  else
    bench.measure(what, run, rotations);
}

void bench_plan(Bench& bench) {
  for (const int sequences : {1, 512}) {
    const GenerationStep step({"", std::vector<int32_t>(sequences, 500), {32, 8, 128}}, 1);
    step.run(0, bench.context());
    const double us = bench.time_us(
        [&](int) {
          step.plan(bench.context());
          step.run(0, bench.context());
        },
        1);
    const double alone = bench.time_us([&](int) { step.run(0, bench.context()); }, 1);
    std::printf("{\"op\": \"generation plan\", \"shape\": \"S %d\", \"us\": %.3f}\n", sequences, us - alone);
  }
}

constexpr Heads kLlama8b = {32, 8, 128}, kLlama1b = {32, 8, 64};

Workload equal(int count, int32_t length, Heads heads) {
  return {concat("S ", count, ", context ", length), std::vector<int32_t>(count, length), heads};
}

void bench_generation_attention(Bench& bench) {
  const auto work = [&] {
    std::vector<Workload> all;
    for (const int32_t length : {1024, 2048, 4096, 8192}) all.push_back(equal(64, length, kLlama8b));
    for (const int32_t length : {128, 384, 1024, 8192, 32768}) all.push_back(equal(1, length, kLlama8b));
    for (const int32_t length : {128, 384}) all.push_back(equal(1, length, kLlama1b));
    all.push_back(equal(512, 500, kLlama8b));
    all.push_back(equal(512, 500, kLlama1b));
    all.push_back(equal(64, 320, kLlama1b));
    all.push_back(equal(64, 4096, kLlama1b));
    all.push_back(equal(64, 1024, {32, 32, 128}));
    all.push_back(equal(64, 2048, {64, 8, 128}));
    all.push_back(equal(64, 2048, {40, 8, 80}));
    all.push_back(equal(64, 2048, {32, 8, 96}));
    all.push_back(equal(64, 2048, {16, 8, 256}));
    all.push_back({"S 64, context 512 and one of 32768", skewed(32768, 64, 512), kLlama8b});
    return all;
  };
  for (const Workload& one : work()) bench_workload(bench, one);
  bench_plan(bench);
}

/// The lengths of throughput runs, after a plain read of as many bytes: what the attention's work adds to its power.
void bench_sustained(Bench& bench) {
  {
    const Buffer source = random_buffer({int64_t{1} << 30});
    const Buffer sums(DType::kUInt8, {bytes_of_sums(source)});
    bench.measure_sustained(
        {"read", "2 GiB", static_cast<double>(source.view.bytes())},
        [&](int) { read_all(source, sums, bench.context()); }, 1, kSustainedSeconds);
  }
  for (const Heads& heads : {kLlama8b, kLlama1b})
    for (const int32_t length : {192, 1500}) bench_workload(bench, equal(512, length, heads), kSustainedSeconds);
}

const Registered kCases("generation_attention", bench_generation_attention);
const Registered kSustained("generation_attention_sustained", bench_sustained);

}  // namespace
}  // namespace inflight::bench
