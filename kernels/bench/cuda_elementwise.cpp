// The ops between the matrix products: norms, activations, rotary embedding with the cache write, rows by index. They
// do next to no arithmetic; bytes count.

#include <cmath>
#include <numeric>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_data.h"
#include "kernels/cuda/ops.h"

namespace inflight::bench {
namespace {

constexpr double kElementBytes = 2;

std::vector<Buffer> several(int count, std::initializer_list<int64_t> dims) {
  std::vector<Buffer> out;
  for (int i = 0; i < count; ++i) out.push_back(random_buffer(dims));
  return out;
}

void bench_norms(Bench& bench) {
  const int64_t h = 4096;
  for (const int64_t m : {1, 64, 4096}) {
    const double bytes = kElementBytes * (4.0 * m * h + h);  // x, residual in and out, out, weight
    const int rotations = rotations_of(bytes);
    const auto x = several(rotations, {m, h}), residual = several(rotations, {m, h}), out = several(rotations, {m, h});
    const Buffer weight = random_buffer({h});
    const std::string shape = concat("[", m, ", ", h, "], residual added");
    bench.measure(
        {"rms_norm", shape, bytes},
        [&](int i) { cuda::rms_norm({x[i], residual[i], weight, out[i]}, bench.context()); }, rotations);
    bench.measure(
        {"layer_norm", shape, bytes + kElementBytes * h},
        [&](int i) { cuda::layer_norm({x[i], residual[i], weight, weight, out[i]}, bench.context()); }, rotations);
  }
}

void bench_activations(Bench& bench) {
  for (const int64_t m : {1, 64, 4096}) {
    const int64_t n = 14336;
    const double bytes = kElementBytes * 3 * m * n;
    const int rotations = rotations_of(bytes);
    const auto x = several(rotations, {m, 2 * n}), out = several(rotations, {m, n});
    bench.measure(
        {"gated_activation", concat("[", m, ", 2 * ", n, "], silu"), bytes},
        [&](int i) { cuda::gated_activation({x[i], out[i]}, bench.context()); }, rotations);
  }
  const int64_t m = 4096, n = 16384;
  const double bytes = kElementBytes * 2 * m * n;
  const int rotations = rotations_of(bytes);
  const auto x = several(rotations, {m, n}), out = several(rotations, {m, n});
  for (const auto& [name, activation] : {std::pair{"gelu", Activation::kGelu}, {"gelu_tanh", Activation::kGeluTanh}})
    bench.measure(
        {"activation", concat("[", m, ", ", n, "], ", name), bytes},
        [&, activation = activation](int i) { cuda::activation({x[i], out[i], activation}, bench.context()); },
        rotations);
  bench.measure(
      {"add", concat("[", m, ", ", n, "]"), 1.5 * bytes},
      [&](int i) { cuda::add({x[i], x[(i + 1) % rotations], out[i]}, bench.context()); }, rotations);
}

/// `tokens` new tokens: one of each of as many sequences ("generation"), or all of one sequence.
void bench_rope(Bench& bench, int64_t tokens, bool generation) {
  constexpr int64_t kHeads = 32, kKvHeads = 8, kHeadSize = 128, kBlockSize = 64, kPast = 1000;
  const int64_t sequences = generation ? tokens : 1;
  const int64_t width = (kPast + tokens / sequences + kBlockSize - 1) / kBlockSize, blocks = sequences * width;
  std::vector<int32_t> positions(tokens), owners(tokens), lengths(sequences, kPast + tokens / sequences);
  std::vector<int32_t> table(blocks);
  for (int64_t t = 0; t < tokens; ++t) {
    positions[t] = static_cast<int32_t>(kPast + (generation ? 0 : t));
    owners[t] = static_cast<int32_t>(generation ? t : 0);
  }
  std::iota(table.begin(), table.end(), 0);
  std::vector<float> frequencies(kHeadSize / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = std::pow(500000.0f, -2.0f * i / kHeadSize);
  const Buffer position_list = int_buffer(positions), owner_list = int_buffer(owners);
  const Buffer length_list = int_buffer(lengths), tables = int_buffer(table, {sequences, width});
  const Buffer inverse_frequencies = float_buffer(frequencies);
  BatchView batch;
  batch.positions = position_list;
  batch.token_sequences = owner_list;
  batch.context_lengths = length_list;
  batch.block_tables = tables;
  const int64_t row = (kHeads + 2 * kKvHeads) * kHeadSize;
  const double bytes = kElementBytes * 2 * tokens * row;
  const int rotations = rotations_of(bytes);
  const auto qkv = several(rotations, {tokens, row}), q = several(rotations, {tokens, kHeads * kHeadSize});
  const auto keys = several(rotations, {blocks, kKvHeads, kBlockSize, kHeadSize});
  const auto values = several(rotations, {blocks, kKvHeads, kBlockSize, kHeadSize});
  bench.measure(
      {"rope_kv_write", concat("T ", tokens, " of ", sequences, " sequences, heads 32/8, D 128"), bytes},
      [&](int i) {
        const RopeKvWriteArgs args{qkv[i], inverse_frequencies, 1.0f, false, {keys[i], values[i]}, q[i]};
        cuda::rope_kv_write(args, batch, bench.context());
      },
      rotations);
}

void bench_ropes(Bench& bench) {
  bench_rope(bench, 1, true);
  bench_rope(bench, 64, true);
  bench_rope(bench, 4096, false);
}

void bench_rows(Bench& bench) {
  const int64_t h = 4096, vocabulary = 128256;
  const Buffer table = random_buffer({vocabulary, h});
  for (const int64_t t : {1, 64, 4096}) {
    std::vector<int32_t> ids(t);
    for (int64_t i = 0; i < t; ++i) ids[i] = static_cast<int32_t>(i * 7919 % vocabulary);
    const Buffer rows = int_buffer(ids);
    const double bytes = kElementBytes * 2 * t * h;
    const int rotations = rotations_of(bytes);
    const auto out = several(rotations, {t, h});
    bench.measure(
        {"embedding", concat("T ", t, ", H ", h), bytes},
        [&](int i) { cuda::embedding({rows, table, out[i]}, bench.context()); }, rotations);
  }
}

void bench_kv_copy(Bench& bench) {
  constexpr int kLayers = 32, kCopies = 16, kTokens = 37;
  const int64_t kv_heads = 8, block_size = 64, head_size = 128;
  const auto pools = several(2 * kLayers, {2 * kCopies, kv_heads, block_size, head_size});
  std::vector<KvCacheView> layers;
  for (int i = 0; i < kLayers; ++i) layers.push_back({pools[2 * i], pools[2 * i + 1]});
  std::vector<KvBlockCopy> copies;
  for (int i = 0; i < kCopies; ++i) copies.push_back({i, kCopies + i, kTokens});
  const double bytes = kElementBytes * 2 * 2 * kLayers * kCopies * kv_heads * kTokens * head_size;
  bench.measure(
      {"copy_kv_blocks", "32 layers, 16 blocks, 37 of 64 tokens, heads 8, D 128", bytes},
      [&](int) { cuda::copy_kv_blocks(layers, {}, copies, bench.context()); }, 1);
}

const Registered kNorms("norm", bench_norms);
const Registered kActivations("activation", bench_activations);
const Registered kRopes("rope", bench_ropes);
const Registered kRows("embedding", bench_rows);
const Registered kKvCopies("kv_copy", bench_kv_copy);

}  // namespace
}  // namespace inflight::bench
