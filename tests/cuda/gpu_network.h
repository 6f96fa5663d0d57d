#pragma once

#include <bit>
#include <cmath>

#include "tests/batcher/tiny_engine.h"

/// A small network with the shapes that the GPU's kernels are for.
namespace inflight::testing {

/// Rotary grouped-query attention and a gated activation, weights in bfloat16 with logits that differ clearly.
struct GpuNetwork {
  static constexpr int kVocabulary = 512;
  static constexpr int kWidth = 256;
  static constexpr int kHeads = 4;
  static constexpr int kKvHeads = 2;
  static constexpr int kHeadSize = 64;
  static constexpr int kInner = 384;
  static constexpr int kLayers = 3;
  static constexpr int kPositions = 640;

  static json weight(const std::vector<std::string>& tensors, const std::vector<int64_t>& shape) {
    json sources = json::array();
    for (const std::string& tensor : tensors) sources.push_back({{"file", "model.safetensors"}, {"tensor", tensor}});
    return {{"dtype", "bfloat16"}, {"shape", shape}, {"shard", "replicated"}, {"sources", sources}};
  }

  static json weights() {
    constexpr int kQ = kHeads * kHeadSize, kKv = kKvHeads * kHeadSize;
    json all = {{"embedding", weight({"embedding"}, {kVocabulary, kWidth})},
                {"head", weight({"embedding"}, {kVocabulary, kWidth})},  // tied
                {"norm", weight({"norm"}, {kWidth})}};
    for (int i = 0; i < kLayers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      all[layer + "norm"] = weight({layer + "norm"}, {kWidth});
      all[layer + "mlp_norm"] = weight({layer + "mlp_norm"}, {kWidth});
      all[layer + "qkv"] = weight({layer + "q", layer + "k", layer + "v"}, {kQ + 2 * kKv, kWidth});
      all[layer + "out"] = weight({layer + "out"}, {kWidth, kQ});
      all[layer + "out_bias"] = weight({layer + "out_bias"}, {kWidth});
      all[layer + "gate_up"] = weight({layer + "gate", layer + "up"}, {2 * kInner, kWidth});
      all[layer + "down"] = weight({layer + "down"}, {kWidth, kInner});
      all[layer + "down"]["sources"][0]["transpose"] = true;
    }
    return all;
  }

  static json layer_ops() {
    const json heads = {{"layer", 0}, {"num_heads", kHeads}, {"num_kv_heads", kKvHeads}, {"head_size", kHeadSize}};
    json rope = heads, attention = heads;
    json frequencies = json::array();
    for (int i = 0; i < kHeadSize / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / kHeadSize));
    rope.update(json{{"inverse_frequencies", frequencies}, {"rope_scale", 1.0}, {"interleaved", false}});
    attention.update(json{{"scale", 0.125}, {"window", 0}, {"soft_cap", 0.0}, {"alibi_slopes", json::array()}});
    const std::string layer = "layers.{layer}.";
    return {op("rms_norm", {{"x", "x"}}, {{"weight", layer + "norm"}}, {{"out", "normed"}}, {{"epsilon", 1e-5}}),
            op("linear", {{"x", "normed"}}, {{"weight", layer + "qkv"}}, {{"out", "qkv"}}),
            op("rope_kv_write", {{"qkv", "qkv"}}, {}, {{"q", "q"}}, rope),
            op("attention", {{"q", "q"}}, {}, {{"out", "attended"}}, attention),
            op("linear", {{"x", "attended"}}, {{"weight", layer + "out"}, {"bias", layer + "out_bias"}},
               {{"out", "out.partial"}}),
            op("all_reduce", {{"x", "out.partial"}}, {}, {{"out", "out"}}),
            op("rms_norm", {{"x", "out"}, {"residual", "x"}}, {{"weight", layer + "mlp_norm"}},
               {{"out", "mlp_normed"}, {"residual", "middle"}}, {{"epsilon", 1e-5}}),
            op("linear", {{"x", "mlp_normed"}}, {{"weight", layer + "gate_up"}}, {{"out", "gate_up"}}),
            op("gated_activation", {{"x", "gate_up"}}, {}, {{"out", "gated"}}, {{"activation", "silu"}}),
            op("linear", {{"x", "gated"}}, {{"weight", layer + "down"}}, {{"out", "down"}}),
            op("add", {{"a", "middle"}, {"b", "down"}}, {}, {{"out", "x.next"}})};
  }

  static json plan() {
    json document = {{"format", "inflight-plan"}, {"version", 1}, {"quantization", nullptr}};
    document["network"] = {{"family", "gpu"},
                           {"vocabulary_size", kVocabulary},
                           {"hidden_size", kWidth},
                           {"num_layers", kLayers},
                           {"max_positions", kPositions},
                           {"eos_ids", json::array()},
                           {"dtype", "bfloat16"},
                           {"num_parameters", 1}};
    document["checkpoint"] = {{"directory", "."}, {"files", json::array({"model.safetensors"})}};
    document["weights"] = weights();
    document["outputs"] = marked_output("middle", "middle", "layers");
    document["blocks"] = {
        {"prologue", json::array({op("embedding", {{"ids", "token_ids"}}, {{"table", "embedding"}}, {{"out", "x"}})})},
        {"layers", {{"repeat", kLayers}, {"unit", 1}, {"carry", carry({{"x", "x.next"}})}, {"ops", layer_ops()}}},
        {"epilogue",
         {op("rms_norm", {{"x", "x"}}, {{"weight", "norm"}}, {{"out", "normed"}}, {{"epsilon", 1e-5}}),
          op("gather_rows", {{"x", "normed"}, {"rows", "logits_rows"}}, {}, {{"out", "rows"}}),
          op("linear", {{"x", "rows"}}, {{"weight", "head"}}, {{"out", "logits.shard"}}),
          op("all_gather", {{"x", "logits.shard"}}, {}, {{"out", "logits"}})}}};
    document["kv_cache"] = json::array();
    for (int i = 0; i < kLayers; ++i)
      document["kv_cache"].push_back({{"kv_heads", kKvHeads}, {"head_size", kHeadSize}, {"window", 0}});
    return document;
  }

  static std::map<std::string, StoredTensor> tensors() {
    std::mt19937 random(11);
    std::map<std::string, StoredTensor> stored;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape, float mean, float spread) {
      std::normal_distribution<float> normal(mean, spread);
      std::vector<uint16_t> bits(shape[0] * (shape.size() == 2 ? shape[1] : 1));
      for (uint16_t& value : bits) value = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
      stored[name] = {"BF16", shape, bytes_of(bits)};
    };
    const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
      add(name, {rows, columns}, 0.0f, 1.0f / std::sqrt(static_cast<float>(columns)));
    };
    add("embedding", {kVocabulary, kWidth}, 0.0f, 0.3f);
    add("norm", {kWidth}, 1.0f, 0.1f);
    for (int i = 0; i < kLayers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      add(layer + "norm", {kWidth}, 1.0f, 0.1f);
      add(layer + "mlp_norm", {kWidth}, 1.0f, 0.1f);
      add(layer + "out_bias", {kWidth}, 0.0f, 0.1f);
      matrix(layer + "q", kHeads * kHeadSize, kWidth);
      matrix(layer + "k", kKvHeads * kHeadSize, kWidth);
      matrix(layer + "v", kKvHeads * kHeadSize, kWidth);
      matrix(layer + "out", kWidth, kHeads * kHeadSize);
      matrix(layer + "gate", kInner, kWidth);
      matrix(layer + "up", kInner, kWidth);
      matrix(layer + "down", kInner, kWidth);  // stored transposed
    }
    return stored;
  }

  static void write(const std::filesystem::path& directory, const json& document = plan()) {
    write_safetensors(directory / "model.safetensors", tensors());
    write_file(directory / "plan.json", document.dump());
  }
};

}  // namespace inflight::testing
