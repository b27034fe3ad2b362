// Products of small matrices that stay in the cache, the innermost part of attention.
#pragma once
#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace focal_twins {

// Of a tile of sums: 21 of 32 registers hold them, or 12 of 16.
constexpr int kTileRows = kWidth == 16 ? 7 : 6, kTileVectors = kWidth == 16 ? 3 : 2;

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
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sums[i][j] += a.data[i * a.row + k * a.column] * right[j];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store(out + i * out_row + j * kWidth, sums[i][j]);
}

// As many tiles as there are, then ever smaller ones for what is left.
template <int kRows, int kVectors>
inline void strip(View a, const float* b, int64_t b_row, int64_t depth, float* out, int64_t out_row, int64_t vectors) {
  for (; vectors >= kVectors; vectors -= kVectors, b += kVectors * kWidth, out += kVectors * kWidth)
    tile<kRows, kVectors>(a, b, b_row, depth, out, out_row);
  if constexpr (kVectors > 1) strip<kRows, kVectors - 1>(a, b, b_row, depth, out, out_row, vectors);
}

// The fewer rows are left, the more vectors of them are summed at a time, for single sums would wait for each other.
//
// out = a b: a [rows, depth], b [depth, columns] and out [rows, columns], where `columns` are whole vectors.
template <int kRows = kTileRows>
inline void multiply(View a, const float* b, float* out, int64_t rows, int64_t depth, int64_t columns) {
  for (; rows >= kRows; rows -= kRows, a.data += kRows * a.row, out += kRows * columns)
    strip<kRows, std::min(kTileRows * kTileVectors / kRows, 8)>(a, b, columns, depth, out, columns, columns / kWidth);
  if constexpr (kRows > 1) multiply<kRows / 2>(a, b, out, rows, depth, columns);
}

}  // namespace focal_twins
