#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "inflight/error.h"
#include "inflight/tensor.h"

namespace inflight::testing {

using nlohmann::json;

/// A folder of the test's own, removed with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "inflight-test-XXXXXX").string();
    check(::mkdtemp(name.data()) != nullptr, ErrorCode::kInternal, "no temporary folder ", name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The bytes of a safetensors file: header length, header, data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

/// A tensor to be stored: safetensors name of the dtype, shape, raw bytes.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline void write_safetensors(const std::filesystem::path& path, const std::map<std::string, StoredTensor>& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}};
    header[name]["data_offsets"] = {data.size(), data.size() + tensor.bytes.size()};
    data += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // as writers pad it, so that the data is aligned
  write_file(path, safetensors_bytes(text, data));
}

/// Runs `action`, which must throw an Error of `code` whose text contains every one of `parts`.
inline void expect_error(ErrorCode code, const std::vector<std::string>& parts, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    for (const std::string& part : parts) EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    return;
  }
  ADD_FAILURE() << "no error; wanted one that says " << (parts.empty() ? "why" : parts[0]);
}

inline json op(const std::string& name, const json& inputs, const json& weights, const json& outputs,
               const json& attributes = json::object()) {
  const auto object = [](const json& value) { return value.empty() ? json::object() : value; };
  return {{"op", name},
          {"inputs", object(inputs)},
          {"weights", object(weights)},
          {"outputs", object(outputs)},
          {"attributes", object(attributes)}};
}

/// Pairs of tensor names, at a unit's entry and exit.
inline json carry(const std::vector<std::pair<std::string, std::string>>& pairs) {
  json list = json::array();
  for (const auto& [entry, exit] : pairs) list.push_back(json::array({entry, exit}));
  return list;
}

/// The plan's list of marked outputs with one entry.
inline json marked_output(const std::string& name, const std::string& tensor, const std::string& block) {
  return json::array({{{"name", name}, {"tensor", tensor}, {"block", block}}});
}

/// A random decoder: two kinds of sharded matrices, rotary attention with grouped heads, a ReLU layer, everything
/// float32.
struct TinyNetwork {
  static constexpr int kVocabulary = 23;
  static constexpr int kWidth = 16;
  static constexpr int kHeads = 4;
  static constexpr int kKvHeads = 2;
  static constexpr int kHeadSize = 4;
  static constexpr int kInner = 20;
  static constexpr int kPositions = 256;

  int layers = 2;

  json weight(const std::vector<std::string>& tensors, const std::vector<int64_t>& shape,
              const std::string& shard = "replicated", const std::vector<int>& units = {}) const {
    json sources = json::array();
    for (size_t i = 0; i < tensors.size(); ++i) {
      sources.push_back({{"file", "model.safetensors"}, {"tensor", tensors[i]}});
      if (!units.empty()) sources.back()["units"] = units[i];
    }
    return {{"dtype", "float32"}, {"shape", shape}, {"shard", shard}, {"sources", sources}};
  }

  json weights() const {
    const int q = kHeads * kHeadSize, kv = kKvHeads * kHeadSize;
    json all = {{"embedding", weight({"embedding"}, {kVocabulary, kWidth})},
                {"norm", weight({"norm"}, {kWidth})},
                {"head", weight({"head"}, {kVocabulary, kWidth}, "axis0", {kVocabulary})}};
    for (int i = 0; i < layers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      all[layer + "norm"] = weight({layer + "norm"}, {kWidth});
      all[layer + "qkv"] =
          weight({layer + "q", layer + "k", layer + "v"}, {q + 2 * kv, kWidth}, "axis0", {kHeads, kKvHeads, kKvHeads});
      all[layer + "out"] = weight({layer + "out"}, {kWidth, q}, "axis1", {kHeads});
      all[layer + "up"] = weight({layer + "up"}, {kInner, kWidth}, "axis0", {kInner});
      all[layer + "down"] = weight({layer + "down"}, {kWidth, kInner}, "axis1", {kInner});
    }
    return all;
  }

  json layer_ops() const {
    const json heads = {{"layer", 0}, {"num_heads", kHeads}, {"num_kv_heads", kKvHeads}, {"head_size", kHeadSize}};
    json rope = heads, attention = heads;
    rope.update(json{{"inverse_frequencies", {1.0, 0.1}}, {"rope_scale", 1.0}, {"interleaved", false}});
    attention.update(json{{"scale", 0.5}, {"window", 0}, {"soft_cap", 0.0}, {"alibi_slopes", json::array()}});
    const std::string layer = "layers.{layer}.";
    return {op("rms_norm", {{"x", "x"}}, {{"weight", layer + "norm"}}, {{"out", "normed"}}, {{"epsilon", 1e-5}}),
            op("linear", {{"x", "normed"}}, {{"weight", layer + "qkv"}}, {{"out", "qkv"}}),
            op("rope_kv_write", {{"qkv", "qkv"}}, {}, {{"q", "q"}}, rope),
            op("attention", {{"q", "q"}}, {}, {{"out", "attended"}}, attention),
            op("linear", {{"x", "attended"}}, {{"weight", layer + "out"}}, {{"out", "out.partial"}}),
            op("all_reduce", {{"x", "out.partial"}}, {}, {{"out", "out"}}),
            op("add", {{"a", "x"}, {"b", "out"}}, {}, {{"out", "middle"}}),
            op("linear", {{"x", "middle"}}, {{"weight", layer + "up"}}, {{"out", "up"}}),
            op("activation", {{"x", "up"}}, {}, {{"out", "active"}}, {{"activation", "relu"}}),
            op("linear", {{"x", "active"}}, {{"weight", layer + "down"}}, {{"out", "down.partial"}}),
            op("all_reduce", {{"x", "down.partial"}}, {}, {{"out", "down"}}),
            op("add", {{"a", "middle"}, {"b", "down"}}, {}, {{"out", "x.next"}})};
  }

  json plan() const {
    json document = {
        {"format", "inflight-plan"}, {"version", 1}, {"quantization", nullptr}, {"outputs", json::array()}};
    document["network"] = {{"family", "tiny"},
                           {"vocabulary_size", kVocabulary},
                           {"hidden_size", kWidth},
                           {"num_layers", layers},
                           {"max_positions", kPositions},
                           {"eos_ids", json::array()},
                           {"dtype", "float32"},
                           {"num_parameters", 1}};
    document["checkpoint"] = {{"directory", "."}, {"files", json::array({"model.safetensors"})}};
    document["weights"] = weights();
    document["blocks"] = {
        {"prologue", json::array({op("embedding", {{"ids", "token_ids"}}, {{"table", "embedding"}}, {{"out", "x"}})})},
        {"layers", {{"repeat", layers}, {"unit", 1}, {"carry", carry({{"x", "x.next"}})}, {"ops", layer_ops()}}},
        {"epilogue",
         {op("rms_norm", {{"x", "x"}}, {{"weight", "norm"}}, {{"out", "normed"}}, {{"epsilon", 1e-5}}),
          op("gather_rows", {{"x", "normed"}, {"rows", "logits_rows"}}, {}, {{"out", "rows"}}),
          op("linear", {{"x", "rows"}}, {{"weight", "head"}}, {{"out", "logits.shard"}}),
          op("all_gather", {{"x", "logits.shard"}}, {}, {{"out", "logits"}})}}};
    document["kv_cache"] = json::array();
    for (int i = 0; i < layers; ++i)
      document["kv_cache"].push_back({{"kv_heads", kKvHeads}, {"head_size", kHeadSize}, {"window", 0}});
    return document;
  }

  std::map<std::string, StoredTensor> tensors() const {
    std::mt19937 random(5);
    std::map<std::string, StoredTensor> stored;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
      std::normal_distribution<float> normal(shape.size() == 1 ? 1.0f : 0.0f, 0.4f);
      std::vector<float> values(shape[0] * (shape.size() == 2 ? shape[1] : 1));
      for (float& value : values) value = normal(random);
      stored[name] = {"F32", shape, bytes_of(values)};
    };
    add("embedding", {kVocabulary, kWidth});
    add("norm", {kWidth});
    add("head", {kVocabulary, kWidth});
    for (int i = 0; i < layers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      add(layer + "norm", {kWidth});
      add(layer + "q", {kHeads * kHeadSize, kWidth});
      add(layer + "k", {kKvHeads * kHeadSize, kWidth});
      add(layer + "v", {kKvHeads * kHeadSize, kWidth});
      add(layer + "out", {kWidth, kHeads * kHeadSize});
      add(layer + "up", {kInner, kWidth});
      add(layer + "down", {kWidth, kInner});
    }
    return stored;
  }
};

inline void write_engine(const std::filesystem::path& directory, const json& plan, const TinyNetwork& network = {}) {
  write_safetensors(directory / "model.safetensors", network.tensors());
  write_file(directory / "plan.json", plan.dump());
}

}  // namespace inflight::testing
