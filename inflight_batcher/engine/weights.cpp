#include "inflight_batcher/engine/weights.h"

#include <cstring>

namespace inflight {

// A source cut down to this rank's rectangle of the stored matrix (vectors are one column wide), before transposition.
struct WeightStore::Part {
  const SafetensorsFile* file = nullptr;
  const std::byte* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stored_columns = 1;
  int64_t row_start = 0, row_stop = 0;
  int64_t column_start = 0, column_stop = 0;
  bool transpose = false;
  int64_t whole_rows = 0, whole_columns = 0;  // of all ranks together, transposed

  int64_t rows() const { return transpose ? column_stop - column_start : row_stop - row_start; }
  int64_t columns() const { return transpose ? row_stop - row_start : column_stop - column_start; }
  bool contiguous() const { return !transpose && column_start == 0 && column_stop == stored_columns; }
  const std::byte* begin() const { return data + (row_start * stored_columns + column_start) * size_of(dtype); }
};

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// `in` has the alignment that its place in the file gives it.
template <typename T>
void copy_transposed(const std::byte* in, int64_t stride, int64_t rows, int64_t columns, std::byte* out) {
  constexpr int64_t kTile = 64;  // a tile of both sides stays in the first-level cache
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < columns; c0 += kTile)
      for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
        for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c)
          std::memcpy(out + (r * columns + c) * sizeof(T), in + (c * stride + r) * sizeof(T), sizeof(T));
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

WeightStore::Part WeightStore::locate(const std::string& weight, const PlanWeight& recipe, const PlanSource& source) {
  const SafetensorsFile& file = open(source.file);
  const SafetensorsFile::Tensor& stored = file.at(source.tensor);
  check(stored.dtype == recipe.dtype, ErrorCode::kInvalidArgument, "weight '", weight, "' is ", name_of(recipe.dtype),
        " in the plan, its tensor '", source.tensor, "' is ", name_of(stored.dtype), " in the checkpoint");
  check(stored.shape.size() == recipe.shape.size(), ErrorCode::kInvalidArgument, "weight '", weight, "' has shape ",
        shape_text(recipe.shape), " in the plan, its tensor '", source.tensor, "' has ", shape_text(stored.shape));

  Part part{&file, stored.data, stored.dtype};
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

TensorView WeightStore::assemble(const PlanWeight& recipe, const std::vector<Part>& parts) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows();
  const int64_t columns = parts[0].columns();
  const size_t element = size_of(recipe.dtype);
  owned_.push_back(std::make_unique_for_overwrite<std::byte[]>(rows * columns * element));
  std::byte* out = owned_.back().get();
  for (const Part& part : parts) {
    if (!part.transpose) {
      for (int64_t r = 0; r < part.rows(); ++r)
        std::memcpy(out + r * columns * element, part.begin() + r * part.stored_columns * element, columns * element);
    } else if (element == 2) {
      copy_transposed<uint16_t>(part.begin(), part.stored_columns, part.rows(), columns, out);
    } else {
      copy_transposed<float>(part.begin(), part.stored_columns, part.rows(), columns, out);
    }
    out += part.rows() * columns * element;
    if (part.contiguous()) part.file->release(part.begin(), part.rows() * columns * element);
  }
  std::byte* data = owned_.back().get();
  return recipe.shape.size() == 2 ? TensorView(data, recipe.dtype, {rows, columns})
                                  : TensorView(data, recipe.dtype, {rows});
}

TensorView WeightStore::get(const std::string& name) {
  if (const auto found = loaded_.find(name); found != loaded_.end()) return found->second;
  const auto entry = plan_.weights.find(name);
  check(entry != plan_.weights.end(), ErrorCode::kInvalidArgument, "the plan has no weight '", name, "'");
  const PlanWeight& recipe = entry->second;
  if (recipe.shard == Shard::kFirstRank && tp_rank_ != 0) return loaded_[name] = TensorView();

  std::vector<Part> parts;
  for (const PlanSource& source : recipe.sources) parts.push_back(locate(name, recipe, source));
  int64_t whole_rows = 0;
  for (const Part& part : parts) {
    check(part.whole_columns == parts[0].whole_columns, ErrorCode::kInvalidArgument, "weight '", name,
          "' joins sources of ", parts[0].whole_columns, " and ", part.whole_columns, " columns");
    whole_rows += part.whole_rows;
  }
  const int64_t columns = recipe.shape.size() == 2 ? recipe.shape[1] : 1;
  check(whole_rows == recipe.shape[0] && parts[0].whole_columns == columns, ErrorCode::kInvalidArgument, "weight '",
        name, "' has shape ", shape_text(recipe.shape), " in the plan, its sources give [", whole_rows, ", ",
        parts[0].whole_columns, "]");

  const Part& first = parts[0];
  const bool in_place = parts.size() == 1 && first.contiguous() &&
                        reinterpret_cast<uintptr_t>(first.begin()) % size_of(recipe.dtype) == 0;
  TensorView view;
  if (in_place) {
    auto* data = const_cast<std::byte*>(first.begin());  // mapped read-only: kernels only read weights
    view = recipe.shape.size() == 2 ? TensorView(data, recipe.dtype, {first.rows(), first.columns()})
                                    : TensorView(data, recipe.dtype, {first.rows()});
  } else {
    view = assemble(recipe, parts);
  }
  bytes_ += view.bytes();
  return loaded_[name] = view;
}

}  // namespace inflight
