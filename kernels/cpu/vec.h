#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "inflight/tensor.h"

/// Vector arithmetic of the CPU kernels: the compiler's vector extensions, so that every target has it, and intrinsics
/// where they name the one instruction wanted. Every function is forced inline: translation units built for different
/// instruction sets must not share a copy.
#define INFLIGHT_INLINE static inline __attribute__((always_inline))

namespace inflight::cpu {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using IntVec = int32_t __attribute__((vector_size(kLanes * 4)));

/// Memory formats of real numbers; distinct types, so that load() overloads on them.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

INFLIGHT_INLINE Vec broadcast(float value) { return value - Vec{}; }

/// a · b + c, rounded once where the processor can: contraction is not left to chance, since each path must round
/// alike.
INFLIGHT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

INFLIGHT_INLINE float to_float(float value) { return value; }
INFLIGHT_INLINE float to_float(Bfloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
INFLIGHT_INLINE float to_float(Half value) {
#ifdef __F16C__
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Moving the bits in place leaves the exponent 112 too low; one exact product mends normals and subnormals alike.
  return std::bit_cast<float>(sign | magnitude << 13) * 0x1p112f;
#endif
}

/// Rounds to nearest even; NaN stays NaN.
INFLIGHT_INLINE void from_float(float value, float& out) { out = value; }
INFLIGHT_INLINE void from_float(float value, Bfloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out.bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INFLIGHT_INLINE void from_float(float value, Half& out) {
#ifdef __F16C__
  out.bits = static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {
    // Adding 0.5 aligns the subnormal's last place with the float's last place, so the addition itself rounds.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
#endif
}

INFLIGHT_INLINE Vec load(const float* from) {
  Vec out;
  std::memcpy(&out, from, sizeof out);
  return out;
}
INFLIGHT_INLINE Vec load(const Bfloat16* from) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
  Vec out;
  for (int i = 0; i < kLanes; ++i) out[i] = to_float(from[i]);
  return out;
#endif
}
INFLIGHT_INLINE Vec load(const Half* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__) && defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vec out;
  for (int i = 0; i < kLanes; ++i) out[i] = to_float(from[i]);
  return out;
#endif
}

/// The first `count` < kLanes elements, zeros behind them. A tail runs through the same arithmetic as a full vector.
template <typename T>
INFLIGHT_INLINE Vec load_part(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  return load(padded);
}

INFLIGHT_INLINE void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }
INFLIGHT_INLINE void store_part(float* to, Vec value, int64_t count) {
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
}

/// Calls body(offset, count) over [0, size): count is kLanes but for the last. With load_n and store_n the body is
/// written once for both.
template <typename Body>
INFLIGHT_INLINE void for_each_vec(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, std::integral_constant<int, kLanes>());
  if (i < size) body(i, size - i);
}

template <typename T>
INFLIGHT_INLINE Vec load_n(const T* from, std::integral_constant<int, kLanes>) {
  return load(from);
}
template <typename T>
INFLIGHT_INLINE Vec load_n(const T* from, int64_t count) {
  return load_part(from, count);
}
INFLIGHT_INLINE void store_n(float* to, Vec value, std::integral_constant<int, kLanes>) { store(to, value); }
INFLIGHT_INLINE void store_n(float* to, Vec value, int64_t count) { store_part(to, value, count); }

/// Sum of the lanes in one fixed order: halves folded onto each other.
INFLIGHT_INLINE float sum_lanes(Vec value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

INFLIGHT_INLINE float max_lanes(Vec value) {
  float out = value[0];
  for (int i = 1; i < kLanes; ++i) out = value[i] > out ? value[i] : out;
  return out;
}

INFLIGHT_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
INFLIGHT_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

/// e^x: x = n ln 2 + r with |r| <= ln 2 / 2, Taylor's polynomial of degree 7 for e^r (its remainder is below 6e-9),
/// times 2^n in two factors, so that the whole float range is covered. Below -87.3 (where results turn subnormal): 0.
INFLIGHT_INLINE Vec exp(Vec x) {
  const Vec clamped = min(max(x, broadcast(-104.0f)), broadcast(104.0f));
  // 1.5 · 2^23 pushes the fraction out of the mantissa, rounding to the nearest integer.
  const Vec magic = broadcast(12582912.0f);
  const Vec n = multiply_add(clamped, broadcast(1.44269504f), magic) - magic;
  // ln 2 in two parts: n · 0.693359375 is exact.
  const Vec r = multiply_add(n, broadcast(2.12194440e-4f), multiply_add(n, broadcast(-0.693359375f), clamped));
  Vec p = broadcast(1.0f / 5040);
  p = multiply_add(p, r, broadcast(1.0f / 720));
  p = multiply_add(p, r, broadcast(1.0f / 120));
  p = multiply_add(p, r, broadcast(1.0f / 24));
  p = multiply_add(p, r, broadcast(1.0f / 6));
  p = multiply_add(p, r, broadcast(0.5f));
  p = multiply_add(p, r, broadcast(1.0f));
  p = multiply_add(p, r, broadcast(1.0f));
  const IntVec power = __builtin_convertvector(n, IntVec);
  const IntVec half = power >> 1;
  const Vec low = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec high = reinterpret_cast<Vec>((power - half + 127) << 23);
  const Vec result = p * low * high;
  const Vec flushed = x < -87.33654f ? Vec{} : result;
  return x == x ? flushed : x;
}

/// Calls body with a value of the C++ type that holds `dtype`, one of the three real formats that callers have checked.
template <typename Body>
void with_real_type(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(float{});
  if (dtype == DType::kBfloat16) return body(Bfloat16{});
  body(Half{});
}

}  // namespace inflight::cpu
