#include "inflight_batcher/engine/weights.h"

namespace inflight {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void cut(int64_t& start, int64_t& stop, int64_t cut_start, int64_t cut_stop) {
  stop = start + cut_stop;
  start += cut_start;
}

}  // namespace

std::pair<int64_t, int64_t> units_of_rank(int64_t units, int rank, int size) {
  if (units < size) return {rank * units / size, rank * units / size + 1};
  return {rank * units / size, (rank + 1) * units / size};
}

WeightStore::WeightStore(const Plan& plan, int tp_rank, int tp_size)
    : plan_(plan), tp_rank_(tp_rank), tp_size_(tp_size) {}

WeightStore::~WeightStore() = default;

const SafetensorsFile& WeightStore::open(const std::string& file) {
  auto& slot = files_[file];
  if (!slot) slot = std::make_unique<SafetensorsFile>(plan_.checkpoint / file);
  return *slot;
}

WeightPart WeightStore::locate(const std::string& weight, const PlanWeight& recipe, const PlanSource& source) {
  const SafetensorsFile& file = open(source.file);
  const SafetensorsFile::Tensor& stored = file.at(source.tensor);
  check(stored.dtype == recipe.dtype, ErrorCode::kInvalidArgument, "weight '", weight, "' is ", name_of(recipe.dtype),
        " in the plan, its tensor '", source.tensor, "' is ", name_of(stored.dtype), " in the checkpoint");
  check(stored.shape.size() == recipe.shape.size(), ErrorCode::kInvalidArgument, "weight '", weight, "' has shape ",
        shape_text(recipe.shape), " in the plan, its tensor '", source.tensor, "' has ", shape_text(stored.shape));

  WeightPart part{&file, stored.data, stored.dtype};
  part.transpose = source.transpose;
  part.row_stop = stored.shape[0];
  part.column_stop = part.stored_columns = stored.shape.size() == 2 ? stored.shape[1] : 1;
  if (source.slice) {
    auto& [axis, start, stop] = *source.slice;
    const int64_t limit = axis == 0 ? part.row_stop : part.column_stop;
    check(stop <= limit, ErrorCode::kInvalidArgument, "weight '", weight, "' takes [", start, ", ", stop, ") of axis ",
          axis, " of tensor '", source.tensor, "', which has ", limit);
    axis == 0 ? cut(part.row_start, part.row_stop, start, stop) : cut(part.column_start, part.column_stop, start, stop);
  }
  part.whole_rows = part.rows();
  part.whole_columns = part.columns();
  if (recipe.shard == Shard::kAxis0 || recipe.shard == Shard::kAxis1) {
    const bool stored_rows = (recipe.shard == Shard::kAxis0) != part.transpose;
    const int64_t extent = stored_rows ? part.row_stop - part.row_start : part.column_stop - part.column_start;
    check(extent % source.units == 0, ErrorCode::kInvalidArgument, "weight '", weight, "': ", extent, " of tensor '",
          source.tensor, "' do not divide into ", source.units, " units");
    const auto [first, last] = units_of_rank(source.units, tp_rank_, tp_size_);
    const int64_t unit = extent / source.units;
    stored_rows ? cut(part.row_start, part.row_stop, first * unit, last * unit)
                : cut(part.column_start, part.column_stop, first * unit, last * unit);
  }
  return part;
}

TensorView WeightStore::assemble(const Layout& layout) {
  owned_.push_back(std::make_unique<HostMemory>(layout.shape.bytes()));
  TensorView view = layout.shape;
  view.data = owned_.back()->data();
  std::byte* out = owned_.back()->data();
  for (const WeightPart& part : layout.parts) {
    const size_t bytes = static_cast<size_t>(part.rows() * part.columns()) * size_of(part.dtype);
    copy_rows(part, 0, part.rows(), part.dtype, out);
    out += bytes;
    if (part.contiguous()) part.file->release(part.begin(), bytes);
  }
  return view;
}

WeightStore::Layout WeightStore::layout(const std::string& name) {
  const PlanWeight& recipe = find_weight(plan_, name);
  Layout layout;
  if (recipe.shard == Shard::kFirstRank && tp_rank_ != 0) return layout;

  int64_t whole_rows = 0, rows = 0;
  for (const PlanSource& source : recipe.sources) {
    const WeightPart part = locate(name, recipe, source);
    whole_rows += part.whole_rows;
    rows += part.rows();
    layout.parts.push_back(part);
    check(part.whole_columns == layout.parts[0].whole_columns, ErrorCode::kInvalidArgument, "weight '", name,
          "' joins sources of ", layout.parts[0].whole_columns, " and ", part.whole_columns, " columns");
  }
  const WeightPart& first = layout.parts[0];
  const int64_t columns = recipe.shape.size() == 2 ? recipe.shape[1] : 1;
  check(whole_rows == recipe.shape[0] && first.whole_columns == columns, ErrorCode::kInvalidArgument, "weight '", name,
        "' has shape ", shape_text(recipe.shape), " in the plan, its sources give [", whole_rows, ", ",
        first.whole_columns, "]");
  layout.shape = recipe.shape.size() == 2 ? TensorView(nullptr, recipe.dtype, {rows, first.columns()})
                                          : TensorView(nullptr, recipe.dtype, {rows});
  return layout;
}

TensorView WeightStore::get(const std::string& name) {
  if (const auto found = loaded_.find(name); found != loaded_.end()) return found->second;
  const Layout layout = this->layout(name);
  if (layout.parts.empty()) return loaded_[name] = TensorView();
  const WeightPart& first = layout.parts[0];
  const bool in_place = layout.parts.size() == 1 && first.contiguous() &&
                        reinterpret_cast<uintptr_t>(first.begin()) % size_of(first.dtype) == 0;
  TensorView view = layout.shape;
  if (in_place)
    view.data = const_cast<std::byte*>(first.begin());  // mapped read-only: kernels only read weights
  else
    view = assemble(layout);
  bytes_ += view.bytes();
  return loaded_[name] = view;
}

TensorView WeightStore::constant(const std::vector<float>& values) {
  constants_.push_back(values);
  return TensorView(constants_.back().data(), DType::kFloat32, {static_cast<int64_t>(values.size())});
}

std::string weight_identity(const PlanWeight& weight, const std::vector<int64_t>& local_shape) {
  std::string text = shape_text(local_shape);
  for (const PlanSource& source : weight.sources) {
    text += '\n' + source.file + '\n' + source.tensor + (source.transpose ? "\ntransposed" : "\n");
    if (source.slice) text += concat(source.slice->axis, ":", source.slice->start, "-", source.slice->stop);
  }
  return text;
}

const PlanWeight& find_weight(const Plan& plan, const std::string& name) {
  const auto entry = plan.weights.find(name);
  check(entry != plan.weights.end(), ErrorCode::kInvalidArgument, "the plan has no weight '", name, "'");
  return entry->second;
}

}  // namespace inflight
