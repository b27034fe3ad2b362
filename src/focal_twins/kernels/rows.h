// Work on a matrix of rows, in blocks of rows that depend on its shape alone: so do results, whatever the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace focal_twins {

constexpr int64_t kBlockFloats = 16384;  // 64 KB: two or three of these fit the second cache

inline int64_t block_rows(int64_t width) { return std::max<int64_t>(kBlockFloats / std::max<int64_t>(width, 1), 1); }

inline int64_t blocks(int64_t height, int64_t width) {
  const int64_t rows = block_rows(width);
  return (height + rows - 1) / rows;
}

inline int64_t first_row(int64_t block, int64_t width) { return block * block_rows(width); }

inline int64_t end_row(int64_t block, int64_t height, int64_t width) {
  return std::min(first_row(block + 1, width), height);
}

// Calls function(first row, end row, sums) for every block of rows and adds up what each adds to its sums, vectors
// [parts, width] that start at zero, block by block in order: outs[part] are the totals, one after the other.
template <typename Function>
void sum_over_blocks(int64_t height, int64_t width, int64_t parts, float* const* outs, Function function) {
  const int64_t count = blocks(height, width), size = parts * width;
  std::vector<float> sums(count * size, 0.0f);
  float* all = sums.data();
  parallel(count, [=](int64_t block) {
    function(first_row(block, width), end_row(block, height, width), all + block * size);
  });
  for (int64_t part = 0; part < parts; ++part) {
    std::fill(outs[part], outs[part] + width, 0.0f);
    for (int64_t block = 0; block < count; ++block)
      for (int64_t i = 0; i < width; ++i) outs[part][i] += all[block * size + part * width + i];
  }
}

template <typename Function>
void sum_over_blocks(int64_t height, int64_t width, int64_t parts, float* out, Function function) {
  sum_over_blocks(height, width, parts, &out, function);
}

}  // namespace focal_twins
