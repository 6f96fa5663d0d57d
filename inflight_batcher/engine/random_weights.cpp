#include "inflight_batcher/engine/random_weights.h"

#include <bit>

#include "inflight_batcher/engine/weights.h"

namespace inflight {

namespace {

// SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The sum of four uniform numbers, brought to variance 1: close enough to normal for weights.
float about_normal(uint64_t bits) {
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits >> (16 * i) & 0xffff) / 65536.0f;
  return (sum - 2.0f) * 1.7320508f;
}

}  // namespace

std::vector<int64_t> local_shape(const Plan& plan, const std::string& name, int tp_rank, int tp_size) {
  const PlanWeight& recipe = find_weight(plan, name);
  std::vector<int64_t> shape = recipe.shape;
  const bool sharded = recipe.shard == Shard::kAxis0 || recipe.shard == Shard::kAxis1;
  if (!sharded || tp_size == 1) return shape;
  // Units are equally large in all sources, so their numbers alone tell how the axis is divided.
  const bool rows = recipe.shard == Shard::kAxis0;
  int64_t units = 0, local = 0;
  for (const PlanSource& source : recipe.sources) {
    const auto [first, last] = units_of_rank(source.units, tp_rank, tp_size);
    units += source.units;
    local += last - first;
    if (!rows) break;  // side by side by rows, all sources are divided alike by columns
  }
  int64_t& extent = shape.at(rows ? 0 : 1);
  check(extent % units == 0, ErrorCode::kInvalidArgument, "weight '", name, "': ", extent, " do not divide into ",
        units, " units");
  extent = extent / units * local;
  return shape;
}

RandomScale random_scale(const std::string& name, size_t rank) {
  if (rank > 1 || name.ends_with("bias")) return {0.0f, 0.02f};
  return {1.0f, 0.02f};
}

uint64_t random_seed(const std::string& name) {
  uint64_t seed = 0;
  for (const char c : name) seed = mix(seed ^ static_cast<unsigned char>(c));
  return seed;
}

TensorView RandomWeights::get(const std::string& name) {
  const PlanWeight& recipe = find_weight(plan_, name);
  if (recipe.shard == Shard::kFirstRank && tp_rank_ != 0) return TensorView();
  const std::vector<int64_t> shape = local_shape(plan_, name, tp_rank_, tp_size_);
  TensorView& view = drawn_[weight_identity(recipe, shape)];
  if (view) return view;

  const DType dtype = recipe.dtype == DType::kFloat32 ? DType::kFloat32 : DType::kBfloat16;
  view = shape.size() == 2 ? TensorView(nullptr, dtype, {shape[0], shape[1]}) : TensorView(nullptr, dtype, {shape[0]});
  owned_.push_back(std::make_unique_for_overwrite<std::byte[]>(view.bytes()));
  view.data = owned_.back().get();
  bytes_ += view.bytes();
  const RandomScale scale = random_scale(name, shape.size());
  const uint64_t seed = random_seed(name) + static_cast<uint64_t>(tp_rank_);
  for (int64_t i = 0; i < view.elements(); ++i) {
    const float value = scale.mean + scale.spread * about_normal(mix(seed ^ mix(i)));
    if (dtype == DType::kFloat32)
      view.as<float>()[i] = value;
    else
      view.as<uint16_t>()[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }
  return view;
}

TensorView RandomWeights::constant(const std::vector<float>& values) {
  constants_.push_back(values);
  return TensorView(constants_.back().data(), DType::kFloat32, {static_cast<int64_t>(values.size())});
}

}  // namespace inflight
