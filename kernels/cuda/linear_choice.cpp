#include "kernels/cuda/linear_choice.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iomanip>
#include <sstream>

#include "inflight/error.h"

namespace inflight::cuda {
namespace {

constexpr int kRowBuckets[] = {1,   2,   4,   8,   16,  32,   48,   64,   96,   128,  160,  192, 256,
                               320, 384, 448, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192};

constexpr size_t kWords = std::tuple_size_v<CublasLtAlgorithm>;
constexpr size_t kDigits = 16;  // of a 64-bit word

std::optional<LinearChoice> cublaslt_choice(const std::string& hex) {
  if (hex.size() != kWords * kDigits || hex.find_first_not_of("0123456789abcdef") != std::string::npos) return {};
  LinearChoice choice{LinearChoice::Kind::kCublasLt};
  for (size_t i = 0; i < kWords; ++i) choice.algorithm[i] = std::stoull(hex.substr(i * kDigits, kDigits), nullptr, 16);
  return choice;
}

}  // namespace

std::string text_of(const LinearChoice& choice) {
  std::ostringstream text;
  switch (choice.kind) {
    case LinearChoice::Kind::kPlain: text << "plain"; break;
    case LinearChoice::Kind::kSkinny: text << "skinny " << choice.skinny.rows << ' ' << choice.skinny.split; break;
    case LinearChoice::Kind::kSlim: text << "slim " << choice.slim.split << ' ' << choice.slim.blocks_per_sm; break;
    case LinearChoice::Kind::kTiled:
      text << "tiled " << choice.tiled.rows << ' ' << choice.tiled.columns << ' ' << choice.tiled.cluster;
      break;
    case LinearChoice::Kind::kCublasLt:
      text << "cublaslt " << std::hex << std::setfill('0');
      for (const uint64_t word : choice.algorithm) text << std::setw(kDigits) << word;
  }
  return text.str();
}

std::optional<LinearChoice> choice_of(const std::string& text) {
  std::istringstream words(text);
  std::string kind, hex, rest;
  LinearChoice choice;
  words >> kind;
  if (kind == "skinny") {
    choice.kind = LinearChoice::Kind::kSkinny;
    words >> choice.skinny.rows >> choice.skinny.split;
  } else if (kind == "slim") {
    choice.kind = LinearChoice::Kind::kSlim;
    words >> choice.slim.split >> choice.slim.blocks_per_sm;
  } else if (kind == "tiled") {
    choice.kind = LinearChoice::Kind::kTiled;
    words >> choice.tiled.rows >> choice.tiled.columns >> choice.tiled.cluster;
  } else if (kind == "cublaslt") {
    words >> hex;
    const std::optional<LinearChoice> read = cublaslt_choice(hex);
    if (!read) return {};
    choice = *read;
  } else if (kind != "plain") {
    return {};
  }
  if (words.fail() || words >> rest) return {};
  return choice;
}

std::string text_of(const LinearKey& key) {
  return concat(key.m, " x ", key.n, " x ", key.k, key.float_out ? " float32" : " bfloat16", key.bias ? " bias" : "",
                key.gated ? " gated" : "", key.add ? " add" : "");
}

std::span<const int> row_buckets() { return kRowBuckets; }

int bucket_of(int64_t m) {
  const int* found = std::lower_bound(std::begin(kRowBuckets), std::end(kRowBuckets), m);
  return found == std::end(kRowBuckets) ? kRowBuckets[std::size(kRowBuckets) - 1] : *found;
}

}  // namespace inflight::cuda
