#include "inflight_batcher/engine/cuda_weights.h"

#include <algorithm>
#include <set>

#include "inflight_batcher/engine/random_weights.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/random_fill.h"

namespace inflight {

namespace {

constexpr size_t kAlignment = 256;  // of a weight's first element, for the widest loads
constexpr int kMaxThreads = 8;      // more do not make the bus faster

size_t aligned_bytes(const std::vector<int64_t>& shape) {
  size_t bytes = size_of(DType::kBfloat16);
  for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

size_t bytes_of_all(const Plan& plan) {
  size_t bytes = 0;
  std::set<std::string> seen;
  for (const auto& [name, weight] : plan.weights)
    if (seen.insert(weight_identity(weight, weight.shape)).second) bytes += aligned_bytes(weight.shape);
  return bytes;
}

}  // namespace

CudaWeights::CudaWeights(const Plan& plan, bool random, int threads, cuda::CudaContext& context)
    : plan_(plan), context_(context), memory_(bytes_of_all(plan)) {
  if (random) return;
  store_ = std::make_unique<WeightStore>(plan, 0, 1);
  uploader_ = std::make_unique<CudaUploader>(context.options().device, std::clamp(threads, 1, kMaxThreads));
}

TensorView CudaWeights::get(const std::string& name) {
  const PlanWeight& recipe = find_weight(plan_, name);
  TensorView& view = placed_[weight_identity(recipe, recipe.shape)];
  if (view) return view;
  const bool matrix = recipe.shape.size() == 2;
  TensorView place = matrix ? TensorView(nullptr, DType::kBfloat16, {recipe.shape[0], recipe.shape[1]})
                            : TensorView(nullptr, DType::kBfloat16, {recipe.shape[0]});
  place.data = memory_.data() + used_;
  fill(name, place);
  used_ += aligned_bytes(recipe.shape);
  return view = place;
}

void CudaWeights::fill(const std::string& name, const TensorView& view) {
  if (!store_) {
    const RandomScale scale = random_scale(name, static_cast<size_t>(view.rank));
    cuda::fill_random(view.data, view.elements(), random_seed(name), scale.mean, scale.spread, context_);
    return;
  }
  auto* destination = view.as<std::byte>();
  for (const WeightPart& part : store_->layout(name).parts) {
    uploader_->add(part, destination);
    destination += static_cast<size_t>(part.rows() * part.columns()) * size_of(view.dtype);
  }
}

TensorView CudaWeights::constant(const std::vector<float>& values) {
  const auto [entry, fresh] = constants_.try_emplace(values);
  cuda::DeviceMemory& memory = entry->second;
  if (fresh) {
    memory = cuda::DeviceMemory(values.size() * sizeof(float));
    cuda::check_cuda(cudaMemcpy(memory.data(), values.data(), memory.bytes(), cudaMemcpyHostToDevice), "a constant");
  }
  return TensorView(memory.data(), DType::kFloat32, {static_cast<int64_t>(values.size())});
}

void CudaWeights::finish_loading() {
  if (uploader_) uploader_->finish();
  context_.synchronize();
  uploader_.reset();
  store_.reset();
}

}  // namespace inflight
