#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inflight/tensor.h"

namespace inflight {

/// One operation of a plan: operands by the names that the op's declaration gives them.
struct PlanOp {
  std::string op;
  std::map<std::string, std::string> inputs;
  std::map<std::string, std::string> weights;
  std::map<std::string, std::string> outputs;
  std::map<std::string, double> numbers;                 // attributes: numbers and booleans
  std::map<std::string, std::string> words;              // attributes: texts
  std::map<std::string, std::vector<double>> sequences;  // attributes: lists of numbers
};

/// Part of a weight: a stored tensor, sliced, then transposed.
struct PlanSource {
  std::string file;
  std::string tensor;
  struct Slice {
    int axis = 0;
    int64_t start = 0;
    int64_t stop = 0;
  };
  std::optional<Slice> slice;
  bool transpose = false;
  int64_t units = 1;  // equal parts that tensor-parallel ranks divide among themselves
};

enum class Shard { kReplicated, kAxis0, kAxis1, kFirstRank };

/// Where a weight comes from: its sources end to end along axis 0.
struct PlanWeight {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  Shard shard = Shard::kReplicated;
  std::vector<PlanSource> sources;
};

struct PlanKvLayer {
  int num_kv_heads = 0;
  int head_size = 0;
  int window = 0;           // as the plan says; 0: none
  int window_in_force = 0;  // what the configuration makes of it (limit_attention)
  int sinks = 0;            // first tokens that the window never hides
};

/// A tensor that the executor can return for debugging; in the layers block, one per repetition.
struct PlanOutput {
  std::string name;
  std::string tensor;
  std::string block;
};

/// plan.json as data: what a network computes and where its weights lie (tools/inflight/plan.schema.json says the
/// format).
struct Plan {
  std::string family;
  int vocabulary_size = 0;
  int hidden_size = 0;
  int num_layers = 0;
  int max_positions = 0;
  std::vector<int> eos_ids;

  std::filesystem::path checkpoint;
  std::map<std::string, PlanWeight> weights;

  std::vector<PlanOp> prologue;
  std::vector<PlanOp> unit;  // the ops of `unit_layers` layers, run `repeat` times
  int repeat = 0;
  int unit_layers = 1;
  std::vector<std::pair<std::string, std::string>> carry;  // tensor names at a unit's entry and exit
  std::vector<PlanOp> epilogue;

  std::vector<PlanKvLayer> kv_layers;
  std::vector<PlanOutput> outputs;
};

/// Reads `directory`/plan.json. Throws Error: kNotFound without that file, kInvalidArgument where the document breaks
/// the schema or contradicts itself (the text names the place), kUnsupported for another format version.
Plan read_plan(const std::filesystem::path& directory);

/// "layers.{layer}.x" -> "layers.4.x", "{layer+1}" -> "5", for a unit that starts at layer 4.
std::string substitute_layer(const std::string& name, int first_layer);

}  // namespace inflight
