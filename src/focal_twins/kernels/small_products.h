// Products of small matrices that stay in the cache, the innermost part of attention.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace focal_twins {

#if defined(__AVX512F__)
constexpr int kTileRows = 7, kTileVectors = 3;  // 21 of 32 registers hold sums
#else
constexpr int kTileRows = 4, kTileVectors = 2;  // 8 of 16
#endif

// Element (i, k) of a matrix is at data[i * row + k * column]: a matrix or its transpose, whichever way it is stored.
struct View {
  const float* data;
  int64_t row, column;
};

template <int kRows, int kVectors>
inline void tile(View a, const float* b, int64_t b_row, int64_t depth, float* out, int64_t out_row) {
  Vec sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = Vec{} + a.data[i * a.row + k * a.column];
      for (int j = 0; j < kVectors; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) store(out + i * out_row + j * kWidth, sums[i][j]);
}

template <int kRows>
inline void strip(View a, const float* b, int64_t b_row, int64_t depth, float* out, int64_t out_row, int64_t vectors) {
  int64_t j = 0;
  for (; j + kTileVectors <= vectors; j += kTileVectors)
    tile<kRows, kTileVectors>(a, b + j * kWidth, b_row, depth, out + j * kWidth, out_row);
  for (; j + 2 <= vectors; j += 2) tile<kRows, 2>(a, b + j * kWidth, b_row, depth, out + j * kWidth, out_row);
  for (; j < vectors; ++j) tile<kRows, 1>(a, b + j * kWidth, b_row, depth, out + j * kWidth, out_row);
}

// out = a b: a [rows, depth], b [depth, columns] and out [rows, columns], where `columns` are whole vectors.
inline void multiply(View a, const float* b, float* out, int64_t rows, int64_t depth, int64_t columns) {
  const int64_t vectors = columns / kWidth;
  int64_t i = 0;
  auto next = [&](int count) {
    a.data += count * a.row;
    out += count * columns;
    i += count;
  };
  for (; i + kTileRows <= rows; next(kTileRows)) strip<kTileRows>(a, b, columns, depth, out, columns, vectors);
  if (i + 4 <= rows) {
    strip<4>(a, b, columns, depth, out, columns, vectors);
    next(4);
  }
  if (i + 2 <= rows) {
    strip<2>(a, b, columns, depth, out, columns, vectors);
    next(2);
  }
  if (i < rows) strip<1>(a, b, columns, depth, out, columns, vectors);
}

}  // namespace focal_twins
