#include "inflight_batcher/engine/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

namespace inflight {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and used in place");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference reader allows

// Unknown dtypes are kept out of the table, so that only using such a tensor is an error.
std::optional<DType> dtype_from(const std::string& name) {
  static const std::map<std::string, DType> kTypes = {{"F32", DType::kFloat32},   {"F16", DType::kFloat16},
                                                      {"BF16", DType::kBfloat16}, {"I32", DType::kInt32},
                                                      {"I64", DType::kInt64},     {"U8", DType::kUInt8}};
  const auto found = kTypes.find(name);
  return found == kTypes.end() ? std::nullopt : std::optional(found->second);
}

uint64_t checked_bytes(const std::vector<int64_t>& shape, DType dtype, uint64_t limit) {
  uint64_t bytes = size_of(dtype);
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (int64_t dim : shape) {
    if (dim < 0 || bytes > limit / static_cast<uint64_t>(dim)) return UINT64_MAX;
    bytes *= static_cast<uint64_t>(dim);
  }
  return bytes;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, ErrorCode::kNotFound, "cannot open weights file ", path.string(), ": ", std::strerror(errno));
  struct stat status{};
  const bool known = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  size_ = known ? static_cast<size_t>(status.st_size) : 0;
  void* mapped = size_ >= 8 ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  ::close(fd);
  check(mapped != MAP_FAILED, ErrorCode::kInvalidArgument, "weights file ", path.string(), " has ", size_,
        " bytes or cannot be mapped; a safetensors file has at least 8");
  data_ = static_cast<const std::byte*>(mapped);
  try {
    read_header();
  } catch (const nlohmann::json::parse_error& e) {  // its text may quote bytes that are no UTF-8
    ::munmap(const_cast<std::byte*>(data_), size_);
    throw Error(ErrorCode::kInvalidArgument,
                concat("header of ", path.string(), " is not JSON from byte ", e.byte, " on"));
  } catch (const nlohmann::json::exception& e) {
    ::munmap(const_cast<std::byte*>(data_), size_);
    throw Error(ErrorCode::kInvalidArgument, concat("header of ", path.string(), ": ", e.what()));
  } catch (...) {
    ::munmap(const_cast<std::byte*>(data_), size_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

void SafetensorsFile::read_header() {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data_, 8);
  check(header_bytes <= kMaxHeaderBytes && header_bytes <= size_ - 8, ErrorCode::kInvalidArgument, "header of ",
        path_.string(), " claims ", header_bytes, " bytes, the file has ", size_);
  const char* text = reinterpret_cast<const char*>(data_ + 8);
  const nlohmann::json header = nlohmann::json::parse(text, text + header_bytes);
  check(header.is_object(), ErrorCode::kInvalidArgument, "header of ", path_.string(), " is of type ",
        header.type_name(), ", wanted an object");
  const uint64_t available = size_ - 8 - header_bytes;
  const std::byte* base = data_ + 8 + header_bytes;

  for (const auto& [name, item] : header.items()) {
    if (name == "__metadata__") continue;
    const auto stored_dtype = item.at("dtype").get<std::string>();
    const std::optional<DType> dtype = dtype_from(stored_dtype);
    if (!dtype) {
      foreign_.emplace(name, stored_dtype);
      continue;
    }
    Tensor tensor{*dtype, item.at("shape").get<std::vector<int64_t>>(), nullptr};
    const uint64_t start = item.at("data_offsets").at(0).get<uint64_t>();
    const uint64_t stop = item.at("data_offsets").at(1).get<uint64_t>();
    check(start <= stop && stop <= available, ErrorCode::kInvalidArgument, "tensor '", name, "' of ", path_.string(),
          " lies at [", start, ", ", stop, "), the file has ", available, " bytes of data (cut short?)");
    check(checked_bytes(tensor.shape, *dtype, available) == stop - start, ErrorCode::kInvalidArgument, "tensor '", name,
          "' of ", path_.string(), " has ", stop - start, " bytes, which is not what its shape and dtype need");
    tensor.data = base + start;
    tensors_.emplace(name, std::move(tensor));
  }
}

const SafetensorsFile::Tensor& SafetensorsFile::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    const auto foreign = foreign_.find(name);
    check(foreign == foreign_.end(), ErrorCode::kUnsupported, "tensor '", name, "' of ", path_.string(),
          " is stored as ", foreign == foreign_.end() ? "" : foreign->second,
          ", wanted one of F32, F16, BF16, I32, I64, U8");
    throw Error(ErrorCode::kNotFound, concat("no tensor '", name, "' in ", path_.string()));
  }
  return found->second;
}

void SafetensorsFile::release(const std::byte* begin, size_t bytes) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace inflight
