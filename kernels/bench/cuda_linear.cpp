#include <algorithm>
#include <string>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/gemm_tuner.h"
#include "kernels/cuda/plain_linear.h"

/// The linear products of Llama 3 8B and 1B, by the best own kernel of each kind and by cuBLASLt's best algorithm, each
/// chosen by timing all candidates; some by every tiled kernel.
namespace inflight::bench {
namespace {

using cuda::DeviceMemory;
using cuda::LinearChoice;
using cuda::LinearKey;

struct Product {
  const char* name;
  int64_t n, k;
  bool float_out = false;
  bool gated = false;
  bool every_tile = false;
};

constexpr Product kProducts[] = {
    {"8b qkv", 6144, 4096, false, false, true},
    {"8b o", 4096, 4096, false, false, true},
    {"8b gate_up", 14336, 4096, false, true, true},
    {"8b down", 4096, 14336, false, false, true},
    {"8b lm_head", 128256, 4096, true},
    {"1b qkv", 3072, 2048},
    {"1b o", 2048, 2048},
    {"1b gate_up", 8192, 2048, false, true},
    {"1b down", 2048, 8192},
    {"1b lm_head", 128256, 2048, true},
};
constexpr int kRows[] = {1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
constexpr int kEveryTileRows[] = {512, 1024, 2048, 8192};
constexpr int kSustainedRows[] = {512, 8192};
constexpr int kSustainedOfLibrary = 3;
constexpr double kSustainedSeconds = 0.4;
constexpr int kMostLogits = 512;  // rows of the lm_head: one a sequence

constexpr int64_t kWeightPool = int64_t{512} << 20;  // past the L2 cache many times

struct Buffers {
  DeviceMemory weights, x, scratch, out;
};

int64_t weight_bytes(const LinearKey& key) { return key.n * key.k * 2 * (key.gated ? 2 : 1); }

double moved_bytes(const LinearKey& key) {
  const int64_t out = key.m * key.n * (key.float_out ? 4 : 2);
  return static_cast<double>(weight_bytes(key) + key.m * key.k * 2 + out);
}

std::vector<LinearKey> all_keys() {
  std::vector<LinearKey> keys;
  for (const Product& product : kProducts)
    for (const int rows : kRows)
      if (!product.float_out || rows <= kMostLogits)
        keys.push_back({rows, product.n, product.k, product.float_out, false, product.gated});
  return keys;
}

int64_t most(const std::vector<LinearKey>& keys, int64_t (*bytes)(const LinearKey&)) {
  int64_t size = 0;
  for (const LinearKey& key : keys) size = std::max(size, bytes(key));
  return size;
}

Buffers make_buffers(const std::vector<LinearKey>& keys, cuda::CudaContext& context) {
  const auto x = [](const LinearKey& key) { return std::max<int64_t>(key.m, cuda::kMaxSlimRows) * key.k * 2; };
  const auto scratch = [](const LinearKey& key) { return key.gated ? key.m * key.n * 4 : 0; };
  const auto out = [](const LinearKey& key) { return key.m * key.n * 4; };
  Buffers buffers{DeviceMemory(std::max(kWeightPool, most(keys, weight_bytes))), DeviceMemory(most(keys, x)),
                  DeviceMemory(most(keys, scratch)), DeviceMemory(most(keys, out))};
  uint32_t seed = 1;
  for (const DeviceMemory* memory : {&buffers.weights, &buffers.x})
    cuda::fill_random(memory->data(), static_cast<int64_t>(memory->bytes() / 2), seed++, context);
  return buffers;
}

/// `seconds`: sustained for so long; 0: only timed.
void measure(Bench& bench, const LinearKey& key, const char* name, const LinearChoice& choice, const Buffers& buffers,
             double seconds = 0) {
  cuda::LinearEngine& engine = bench.context().state<cuda::LinearEngine>();
  const int64_t bytes = weight_bytes(key);
  const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(buffers.weights.bytes()) / bytes);
  const std::string way = choice.kind == LinearChoice::Kind::kCublasLt ? "cublaslt" : cuda::text_of(choice);
  const std::string shape = concat(name, ", M ", key.m, ", N ", key.n * (key.gated ? 2 : 1), ", K ", key.k, ", ", way);
  const double flops = static_cast<double>(weight_bytes(key)) * static_cast<double>(key.m);
  const Case what{key.gated ? "linear_gated" : "linear", shape, moved_bytes(key), flops};
  const auto run = [&](int i) {
    engine.run(key,
               {buffers.x.data(), buffers.weights.data() + i % copies * bytes, nullptr, buffers.scratch.data(),
                buffers.out.data(), Activation::kSilu, std::max<int64_t>(key.m, cuda::kMaxSlimRows)},
               choice);
  };
  if (seconds > 0)
    bench.measure_sustained(what, run, static_cast<int>(copies), seconds);
  else
    bench.measure(what, run, static_cast<int>(copies));
}

void measure_best(Bench& bench, const LinearKey& key, const char* name, LinearChoice::Kind kind,
                  const std::vector<cuda::GemmTuner::Timed>& timed, const Buffers& buffers) {
  const auto best = std::find_if(timed.begin(), timed.end(), [&](const auto& t) { return t.choice.kind == kind; });
  if (best != timed.end()) measure(bench, key, name, best->choice, buffers);
}

void measure_tiles(Bench& bench, const LinearKey& key, const char* name, const Buffers& buffers) {
  for (const cuda::TiledVariant variant : cuda::TiledLinear::variants())
    measure(bench, key, name, {LinearChoice::Kind::kTiled, {}, {}, variant}, buffers);
}

void bench_linear(Bench& bench) {
  cuda::CudaContext& context = bench.context();
  const std::vector<LinearKey> keys = all_keys();
  const Buffers buffers = make_buffers(keys, context);
  cuda::GemmTuner tuner(context.state<cuda::LinearEngine>(), keys, context);
  const LinearKey* key = keys.data();
  for (const Product& product : kProducts)
    for (; key != keys.data() + keys.size() && key->n == product.n && key->k == product.k; ++key) {
      const auto timed = tuner.time(*key);
      measure_best(bench, *key, product.name, LinearChoice::Kind::kSkinny, timed, buffers);
      measure_best(bench, *key, product.name, LinearChoice::Kind::kSlim, timed, buffers);
      if (product.every_tile && std::ranges::find(kEveryTileRows, key->m) != std::end(kEveryTileRows))
        measure_tiles(bench, *key, product.name, buffers);
      else
        measure_best(bench, *key, product.name, LinearChoice::Kind::kTiled, timed, buffers);
      measure_best(bench, *key, product.name, LinearChoice::Kind::kCublasLt, timed, buffers);
    }
}

/// Large products for long enough to meet the GPU's power limit, by every tiled kernel and the library's best few.
void bench_sustained(Bench& bench) {
  cuda::CudaContext& context = bench.context();
  std::vector<LinearKey> keys;
  for (const int rows : kSustainedRows)
    for (const Product& product : kProducts)
      if (product.every_tile) keys.push_back({rows, product.n, product.k, false, false, product.gated});
  const Buffers buffers = make_buffers(keys, context);
  cuda::GemmTuner tuner(context.state<cuda::LinearEngine>(), keys, context);
  for (const LinearKey& key : keys) {
    const auto* product = std::find_if(std::begin(kProducts), std::end(kProducts),
                                       [&](const Product& p) { return p.n == key.n && p.k == key.k; });
    int of_library = 0;
    for (const auto& timed : tuner.time(key))
      if (timed.choice.kind == LinearChoice::Kind::kTiled || of_library++ < kSustainedOfLibrary)
        measure(bench, key, product->name, timed.choice, buffers, kSustainedSeconds);
  }
}

const Registered kCases("linear", bench_linear);
const Registered kSustained("linear_sustained", bench_sustained);

}  // namespace
}  // namespace inflight::bench
