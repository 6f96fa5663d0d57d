#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu.h"

/// What every kernel test needs: tensors that begin poisoned, random inputs, a reference in double precision to compare
/// with by norm, and a comparison of bits.
namespace inflight::test {

using Values = std::vector<double>;

inline constexpr DType kRealTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBfloat16};

/// The same in every run, but for --gtest_random_seed=N.
inline uint32_t run_seed() {
  const auto given = static_cast<uint32_t>(::testing::GTEST_FLAG(random_seed));
  return given ? given : 1;
}

class Random {
 public:
  explicit Random(uint32_t salt = 0) : engine_(run_seed() * 7919 + salt) {}
  double normal() { return normal_(engine_); }
  int integer(int low, int high) { return std::uniform_int_distribution(low, high)(engine_); }
  std::vector<int32_t> permutation(int size) {
    std::vector<int32_t> out(size);
    std::iota(out.begin(), out.end(), 0);
    std::shuffle(out.begin(), out.end(), engine_);
    return out;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<> normal_;
};

inline double decode_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

/// Nearest half, ties to even; for |value| within its range.
inline uint16_t encode_half(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -15, -14);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // 1024 = 1.0
  return sign | static_cast<uint16_t>(units + (exponent + 14) * 1024);
}

inline double decode_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline uint16_t encode_bfloat16(double value) {
  const int exponent = value != 0 ? std::ilogb(value) : 0;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, 7 - exponent)), exponent - 7);
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(rounded)) >> 16);
}

/// Owns the memory of a view. Every byte is 0xff at first: NaN in each real format, -1 in each integer.
class Tensor {
 public:
  Tensor(DType dtype, std::initializer_list<int64_t> dims) : view_(nullptr, dtype, dims) {
    memory_.assign(view_.bytes() + kGuard, std::byte{0xff});
    view_.data = memory_.data();
  }
  static Tensor random(DType dtype, std::initializer_list<int64_t> dims, Random& random, double scale = 1) {
    Tensor out(dtype, dims);
    for (int64_t i = 0; i < out.size(); ++i) out.set(i, random.normal() * scale);
    return out;
  }
  static Tensor ints(const std::vector<int32_t>& values) {
    Tensor out(DType::kInt32, {static_cast<int64_t>(values.size())});
    if (!values.empty()) std::memcpy(out.view_.data, values.data(), values.size() * 4);
    return out;
  }
  Tensor(Tensor&& other) noexcept : view_(other.view_), memory_(std::move(other.memory_)) {}
  Tensor(const Tensor& other) : view_(other.view_), memory_(other.memory_) { view_.data = memory_.data(); }
  Tensor& operator=(Tensor other) {
    view_ = other.view_;
    memory_ = std::move(other.memory_);
    return *this;
  }

  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }
  int64_t size() const { return view_.elements(); }

  double operator[](int64_t i) const {
    switch (view_.dtype) {
      case DType::kFloat32: return view_.as<float>()[i];
      case DType::kFloat16: return decode_half(view_.as<uint16_t>()[i]);
      case DType::kBfloat16: return decode_bfloat16(view_.as<uint16_t>()[i]);
      default: return view_.as<int32_t>()[i];
    }
  }
  void set(int64_t i, double value) {
    switch (view_.dtype) {
      case DType::kFloat32: view_.as<float>()[i] = static_cast<float>(value); break;
      case DType::kFloat16: view_.as<uint16_t>()[i] = encode_half(value); break;
      case DType::kBfloat16: view_.as<uint16_t>()[i] = encode_bfloat16(value); break;
      default: view_.as<int32_t>()[i] = static_cast<int32_t>(value);
    }
  }
  Values values() const {
    Values out(size());
    for (int64_t i = 0; i < size(); ++i) out[i] = (*this)[i];
    return out;
  }
  /// Bytes of rows [begin, end) of the first dimension.
  std::string bits(int64_t begin, int64_t end) const {
    const size_t row = view_.bytes() / view_.shape[0];
    return {view_.as<char>() + begin * row, (end - begin) * row};
  }
  std::string bits() const { return {view_.as<char>(), view_.bytes()}; }
  bool guard_intact() const {
    return std::all_of(memory_.end() - kGuard, memory_.end(), [](std::byte b) { return b == std::byte{0xff}; });
  }

 private:
  static constexpr size_t kGuard = 64;

  TensorView view_;
  std::vector<std::byte> memory_;
};

inline double norm(const Values& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

/// |got - want| / |want|; NaN in `got` makes it NaN, which no bound admits.
inline double relative_error(const Values& got, const Values& want) {
  EXPECT_EQ(got.size(), want.size());
  Values difference(want.size());
  for (size_t i = 0; i < want.size(); ++i) difference[i] = got[i] - want[i];
  const double size = norm(want);
  return size > 0 ? norm(difference) / size : norm(difference);
}

/// Compares an output with its reference, and the memory behind it with its poison.
inline void expect_close(const Tensor& got, const Values& want, double bound, const std::string& what = "") {
  EXPECT_LE(relative_error(got.values(), want), bound) << what << " " << describe(got.view());
  EXPECT_TRUE(got.guard_intact()) << what << ": wrote past its end";
}

inline cpu::CpuContext& context(int threads = 2) {
  static std::map<int, std::unique_ptr<cpu::CpuContext>> contexts;
  auto& slot = contexts[threads];
  if (!slot) slot = std::make_unique<cpu::CpuContext>(threads);
  return *slot;
}

inline const OpTable& ops() { return cpu::op_table(); }

/// The error's text; fails unless one of this code is thrown.
inline std::string error_of(ErrorCode code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

}  // namespace inflight::test
