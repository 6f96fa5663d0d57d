#include "inflight_batcher/engine/weight_parts.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace inflight {

namespace {

uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float float16_value(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 0) return std::copysign(std::ldexp(static_cast<float>(mantissa), -24), sign ? -1.0f : 1.0f);
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

struct Keep16 {
  using Stored = uint16_t;
  using Out = uint16_t;
  static Out convert(Stored value) { return value; }
};
struct Keep32 {
  using Stored = uint32_t;
  using Out = uint32_t;
  static Out convert(Stored value) { return value; }
};
struct FromFloat32 {
  using Stored = float;
  using Out = uint16_t;
  static Out convert(Stored value) { return bfloat16_bits(value); }
};
struct FromFloat16 {
  using Stored = uint16_t;
  using Out = uint16_t;
  static Out convert(Stored value) { return bfloat16_bits(float16_value(value)); }
};

// Neither side need be aligned.
template <typename Conversion>
void convert_element(const std::byte* in, std::byte* out) {
  typename Conversion::Stored value;
  std::memcpy(&value, in, sizeof(value));
  const auto converted = Conversion::convert(value);
  std::memcpy(out, &converted, sizeof(converted));
}

template <typename Conversion>
void copy_straight(const WeightPart& part, int64_t first, int64_t last, std::byte* out) {
  constexpr size_t kIn = sizeof(typename Conversion::Stored), kOut = sizeof(typename Conversion::Out);
  // Whole rows lie end to end: one long run.
  const int64_t runs = part.contiguous() ? 1 : last - first;
  const int64_t length = part.columns() * (last - first) / std::max<int64_t>(runs, 1);
  for (int64_t run = 0; run < runs; ++run) {
    const std::byte* in = part.begin() + (first + run) * part.stored_columns * kIn;
    if constexpr (std::is_same_v<Conversion, Keep16> || std::is_same_v<Conversion, Keep32>)
      std::memcpy(out + run * length * kOut, in, length * kOut);
    else
      for (int64_t i = 0; i < length; ++i) convert_element<Conversion>(in + i * kIn, out + (run * length + i) * kOut);
  }
}

template <typename Conversion>
void copy_transposed(const WeightPart& part, int64_t first, int64_t last, std::byte* out) {
  constexpr size_t kIn = sizeof(typename Conversion::Stored), kOut = sizeof(typename Conversion::Out);
  constexpr int64_t kTile = 64;  // a tile of both sides stays in the first-level cache
  const int64_t columns = part.columns();
  for (int64_t r0 = first; r0 < last; r0 += kTile)
    for (int64_t c0 = 0; c0 < columns; c0 += kTile)
      for (int64_t r = r0; r < std::min(last, r0 + kTile); ++r)
        for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c)
          convert_element<Conversion>(part.begin() + (c * part.stored_columns + r) * kIn,
                                      out + ((r - first) * columns + c) * kOut);
}

template <typename Conversion>
void copy_as(const WeightPart& part, int64_t first, int64_t last, std::byte* out) {
  part.transpose ? copy_transposed<Conversion>(part, first, last, out)
                 : copy_straight<Conversion>(part, first, last, out);
}

}  // namespace

void copy_rows(const WeightPart& part, int64_t first, int64_t last, DType wanted, std::byte* out) {
  const bool to_bfloat16 = wanted == DType::kBfloat16;
  if (part.dtype == wanted)
    size_of(wanted) == 2 ? copy_as<Keep16>(part, first, last, out) : copy_as<Keep32>(part, first, last, out);
  else if (part.dtype == DType::kFloat32 && to_bfloat16)
    copy_as<FromFloat32>(part, first, last, out);
  else if (part.dtype == DType::kFloat16 && to_bfloat16)
    copy_as<FromFloat16>(part, first, last, out);
  else
    throw Error(ErrorCode::kUnsupported,
                concat("a weight stored as ", name_of(part.dtype), " is wanted as ", name_of(wanted)));
}

}  // namespace inflight
