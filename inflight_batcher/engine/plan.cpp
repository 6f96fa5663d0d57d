#include "inflight_batcher/engine/plan.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "inflight_batcher/engine/plan_schema_check.h"

namespace inflight {

namespace {

using nlohmann::json;

constexpr int kFormatVersion = 1;

DType dtype_from(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  return DType::kBfloat16;  // the schema admits these three
}

Shard shard_from(const std::string& name) {
  if (name == "axis0") return Shard::kAxis0;
  if (name == "axis1") return Shard::kAxis1;
  if (name == "first_rank") return Shard::kFirstRank;
  return Shard::kReplicated;
}

void read_attribute(const std::string& name, const json& value, PlanOp& op) {
  if (value.is_number()) {
    op.numbers[name] = value.get<double>();
  } else if (value.is_boolean()) {
    op.numbers[name] = value.get<bool>() ? 1.0 : 0.0;
  } else if (value.is_string()) {
    op.words[name] = value.get<std::string>();
  } else if (value.is_array() && std::all_of(value.begin(), value.end(), [](const json& x) { return x.is_number(); })) {
    op.sequences[name] = value.get<std::vector<double>>();
  } else {
    throw Error(ErrorCode::kInvalidArgument, concat("attribute '", name, "' of op '", op.op,
                                                    "' is neither number, boolean, text nor list of numbers"));
  }
}

std::vector<PlanOp> read_ops(const json& items) {
  std::vector<PlanOp> ops;
  for (const json& item : items) {
    PlanOp op;
    item.at("op").get_to(op.op);
    item.at("inputs").get_to(op.inputs);
    item.at("weights").get_to(op.weights);
    item.at("outputs").get_to(op.outputs);
    const json& attributes = item.at("attributes");
    for (auto it = attributes.begin(); it != attributes.end(); ++it) read_attribute(it.key(), it.value(), op);
    ops.push_back(std::move(op));
  }
  return ops;
}

PlanSource read_source(const json& item) {
  PlanSource source;
  item.at("file").get_to(source.file);
  item.at("tensor").get_to(source.tensor);
  source.transpose = item.value("transpose", false);
  source.units = item.value("units", 1);
  if (item.contains("slice")) {
    const json& slice = item.at("slice");
    source.slice = {slice.at("axis").get<int>(), slice.at("start").get<int64_t>(), slice.at("stop").get<int64_t>()};
    check(source.slice->start >= 0 && source.slice->start < source.slice->stop, ErrorCode::kInvalidArgument,
          "slice of tensor '", source.tensor, "' starts at ", source.slice->start, " and stops at ",
          source.slice->stop);
  }
  return source;
}

PlanWeight read_weight(const json& item) {
  PlanWeight weight;
  weight.dtype = dtype_from(item.at("dtype"));
  item.at("shape").get_to(weight.shape);
  weight.shard = shard_from(item.at("shard"));
  for (const json& source : item.at("sources")) weight.sources.push_back(read_source(source));
  return weight;
}

void read_network(const json& network, Plan& plan) {
  network.at("family").get_to(plan.family);
  network.at("vocabulary_size").get_to(plan.vocabulary_size);
  network.at("hidden_size").get_to(plan.hidden_size);
  network.at("num_layers").get_to(plan.num_layers);
  network.at("max_positions").get_to(plan.max_positions);
  network.at("eos_ids").get_to(plan.eos_ids);
}

void read_blocks(const json& blocks, Plan& plan) {
  plan.prologue = read_ops(blocks.at("prologue"));
  const json& layers = blocks.at("layers");
  plan.unit = read_ops(layers.at("ops"));
  layers.at("repeat").get_to(plan.repeat);
  layers.at("unit").get_to(plan.unit_layers);
  for (const json& pair : layers.at("carry")) plan.carry.emplace_back(pair.at(0), pair.at(1));
  plan.epilogue = read_ops(blocks.at("epilogue"));
}

void check_consistency(const Plan& plan) {
  check(static_cast<int64_t>(plan.repeat) * plan.unit_layers == plan.num_layers, ErrorCode::kInvalidArgument,
        "the layers block repeats ", plan.repeat, " units of ", plan.unit_layers, " layers, but the network has ",
        plan.num_layers, " layers");
  check(static_cast<int>(plan.kv_layers.size()) == plan.num_layers, ErrorCode::kInvalidArgument, "kv_cache describes ",
        plan.kv_layers.size(), " layers, but the network has ", plan.num_layers);
  for (const PlanKvLayer& layer : plan.kv_layers)
    check(static_cast<int64_t>(layer.num_kv_heads) * layer.head_size <= INT32_MAX, ErrorCode::kInvalidArgument,
          "kv_cache describes ", layer.num_kv_heads, " heads of ", layer.head_size, ", together more than ", INT32_MAX);
}

json parse_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  check(file.good(), ErrorCode::kNotFound, "no plan at ", path.string(),
        " (write one with: inflight build CHECKPOINT -o DIRECTORY)");
  try {
    return json::parse(file);
  } catch (const json::parse_error& e) {  // its text may quote bytes that are no UTF-8
    throw Error(ErrorCode::kInvalidArgument, concat("it is not JSON from byte ", e.byte, " on"));
  }
}

// The version is looked at before the schema, so that a plan of the future is named as such.
void check_version(const json& document) {
  if (!document.is_object() || !document.contains("version") || !document["version"].is_number_integer()) return;
  const int version = document["version"];
  check(version == kFormatVersion, ErrorCode::kUnsupported, "its format version is ", version,
        ", this build reads version ", kFormatVersion);
}

}  // namespace

Plan read_plan(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "plan.json";
  try {
    const json document = parse_file(path);
    check_version(document);
    check_plan_schema(document);

    Plan plan;
    read_network(document.at("network"), plan);
    plan.checkpoint = directory / std::filesystem::path(document.at("checkpoint").at("directory").get<std::string>());
    for (const auto& [name, item] : document.at("weights").items()) plan.weights[name] = read_weight(item);
    read_blocks(document.at("blocks"), plan);
    for (const json& layer : document.at("kv_cache"))
      plan.kv_layers.push_back({layer.at("kv_heads"), layer.at("head_size"), layer.at("window"), layer.at("window")});
    for (const json& output : document.at("outputs"))
      plan.outputs.push_back({output.at("name"), output.at("tensor"), output.at("block")});
    check_consistency(plan);
    return plan;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kNotFound) throw;
    throw Error(e.code(), concat("plan ", path.string(), ": ", e.what()));
  } catch (const json::exception& e) {
    throw Error(ErrorCode::kInvalidArgument, concat("plan ", path.string(), ": ", e.what()));
  }
}

std::string substitute_layer(const std::string& name, int first_layer) {
  const size_t open = name.find("{layer");
  if (open == std::string::npos) return name;
  const size_t close = name.find('}', open);
  check(close != std::string::npos, ErrorCode::kInvalidArgument, "weight name '", name, "' has an unclosed {layer");
  const std::string inside = name.substr(open + 6, close - open - 6);  // "" or "+K"
  int offset = 0;
  if (!inside.empty()) {
    check(inside.size() > 1 && inside.size() < 6 && inside[0] == '+' &&
              inside.find_first_not_of("0123456789", 1) == std::string::npos,
          ErrorCode::kInvalidArgument, "weight name '", name, "': wanted {layer} or {layer+K}");
    offset = std::stoi(inside.substr(1));
  }
  return name.substr(0, open) + std::to_string(first_layer + offset) + name.substr(close + 1);
}

}  // namespace inflight
