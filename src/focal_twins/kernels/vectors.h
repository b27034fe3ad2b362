// Vectors as wide as the processor's, and what all kernels compute with them.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define FOCAL_TWINS_INLINE inline __attribute__((always_inline))

namespace focal_twins {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = __BIGGEST_ALIGNMENT__ >= 32 ? 8 : 4;  // AVX or not
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));

// The first `count` numbers of a row, at most kWidth, and `rest` in the places of the others.
FOCAL_TWINS_INLINE Vec load(const float* from, int64_t count = kWidth, float rest = 0.0f) {
  Vec x = Vec{} + rest;
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}

FOCAL_TWINS_INLINE void store(float* to, Vec x, int64_t count = kWidth) { std::memcpy(to, &x, count * sizeof(float)); }

// Calls function(place, count) for every vector of a row; the last one may have fewer than kWidth numbers. The function
// is compiled twice, the first time for a count that is known.
template <typename Function>
FOCAL_TWINS_INLINE void each_vector(int64_t width, Function function) {
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) function(i, std::integral_constant<int64_t, kWidth>());
  if (i < width) function(i, width - i);
}

inline float sum(Vec x) {
  float values[kWidth];
  store(values, x);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

inline float largest(Vec x) {
  for (int i = 1; i < kWidth; ++i) x[0] = x[i] > x[0] ? x[i] : x[0];
  return x[0];
}

// e^x of numbers that are at most 88, within 2e-7 of its size: 2^k e^r with |r| <= ln(2) / 2, where the polynomial of
// degree 6 whose largest error is least is off by 3e-9. Results below the smallest normal number may be 0; NaN stays NaN.
inline Vec exponential(Vec x) {
  const float lowest = -88.0f, round = 12582912.0f;  // 2^k is 0 there; 1.5 * 2^23: adding it rounds to an integer
  x = x < lowest ? Vec{} + lowest : x;
  const Vec shifted = x * 1.44269504f + round;
  const Vec k = shifted - round;
  const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // ln 2 in two parts, the first exact in 10 bits
  Vec value = r * 1.38145988e-3f + 8.36871658e-3f;
  value = value * r + 4.16683890e-2f;
  value = value * r + 1.66665211e-1f;
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  return value * (Vec)(((IntVec)shifted + 127) << 23);  // 2^k: the low bits of `shifted` are k
}

// Numbers of two vectors, those of the second after those of the first. Only places that the compiler knows are fast.
template <int... kPlaces>
FOCAL_TWINS_INLINE Vec pick(Vec first, Vec second, std::integer_sequence<int, kPlaces...>) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, kPlaces...);
#else
  return __builtin_shuffle(first, second, IntVec{kPlaces...});
#endif
}

// Exchanges squares of kStep x kStep numbers within ever larger squares of a square that kWidth vectors hold.
template <int kStep, int... kLanes>
FOCAL_TWINS_INLINE void exchange(Vec (&rows)[kWidth], std::integer_sequence<int, kLanes...> lanes) {
  constexpr std::integer_sequence<int, (kLanes & kStep ? kWidth + kLanes - kStep : kLanes)...> upper;
  constexpr std::integer_sequence<int, (kLanes & kStep ? kWidth + kLanes : kLanes + kStep)...> lower;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i & kStep) continue;
    const Vec first = rows[i], second = rows[i + kStep];
    rows[i] = pick(first, second, upper);
    rows[i + kStep] = pick(first, second, lower);
  }
  if constexpr (2 * kStep < kWidth) exchange<2 * kStep>(rows, lanes);
}

// Transposes a square of numbers.
FOCAL_TWINS_INLINE void transpose(Vec (&rows)[kWidth]) { exchange<1>(rows, std::make_integer_sequence<int, kWidth>()); }

}  // namespace focal_twins
