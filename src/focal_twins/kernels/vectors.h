// Vectors as wide as the processor's, and what all kernels compute with them.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

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

// e^x within 2e-7 of its size: 2^k e^r with |r| <= ln(2) / 2, where Taylor's polynomial of degree 7 is off by 5e-9.
// Results below the smallest normal number are 0; NaN stays NaN.
inline Vec exponential(Vec x) {
  const float lowest = -87.33f, highest = 88.37f, round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vec inside = x < lowest ? Vec{} + lowest : x;
  inside = inside > highest ? Vec{} + highest : inside;
  const Vec shifted = inside * 1.44269504f + round;
  const Vec k = shifted - round;
  const Vec r = (inside - k * 0.693359375f) + k * 2.12194440e-4f;  // ln 2 in two parts, the first exact in 10 bits
  Vec value = r * (1.0f / 5040) + 1.0f / 720;
  value = value * r + 1.0f / 120;
  value = value * r + 1.0f / 24;
  value = value * r + 1.0f / 6;
  value = value * r + 0.5f;
  value = value * r + 1.0f;
  value = value * r + 1.0f;
  const Vec power = (Vec)(((IntVec)shifted + 127) << 23);  // 2^k: the low bits of `shifted` are k
  value = value * power;
  value = x < lowest ? Vec{} : value;
  return x > highest ? Vec{} + __builtin_inff() : value;
}

// Transposes a square of numbers that kWidth vectors hold, by exchanging ever larger squares within it.
inline void transpose(Vec (&rows)[kWidth]) {
#if defined(__clang__)  // whose shuffles take constants alone
  float square[kWidth][kWidth];
  std::memcpy(square, rows, sizeof square);
  for (int i = 0; i < kWidth; ++i)
    for (int j = 0; j < kWidth; ++j) rows[i][j] = square[j][i];
#else
#pragma GCC unroll 4
  for (int step = 1; step < kWidth; step *= 2) {
    IntVec upper, lower;
    for (int lane = 0; lane < kWidth; ++lane) {
      upper[lane] = lane & step ? kWidth + lane - step : lane;
      lower[lane] = lane & step ? kWidth + lane : lane + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i & step) continue;
      const Vec first = rows[i], second = rows[i + step];
      rows[i] = __builtin_shuffle(first, second, upper);
      rows[i + step] = __builtin_shuffle(first, second, lower);
    }
  }
#endif
}

}  // namespace focal_twins
