// Work on a matrix of rows, in blocks of rows that depend on its shape alone: so do results, whatever the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace focal_twins {

struct Blocks {
  int64_t height, rows, count;  // of the matrix, of a block; number of blocks

  Blocks(int64_t height, int64_t width)  // 64 KB a block: two or three of these fit the second cache
      : height(height), rows(std::max<int64_t>(16384 / std::max<int64_t>(width, 1), 1)),
        count((height + rows - 1) / rows) {}

  // Calls function(first row, end row, block).
  template <typename Function>
  void each(Function function) const {
    parallel(count, [=](int64_t i) { function(i * rows, std::min(height, (i + 1) * rows), i); });
  }

  // Calls function(first row, end row, sums), which adds to `size` sums of its block that start at zero. Returns the
  // totals, block by block in order.
  template <typename Function>
  std::vector<float> sum(int64_t size, Function function) const {
    std::vector<float> sums(count * size, 0.0f), totals(size, 0.0f);
    float* all = sums.data();
    each([=](int64_t first, int64_t end, int64_t block) { function(first, end, all + block * size); });
    for (int64_t i = 0; i < count * size; ++i) totals[i % size] += sums[i];
    return totals;
  }
};

}  // namespace focal_twins
