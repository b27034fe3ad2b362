// The bias of every pair of query and key, looked up in a table that has one row for each distinct displacement.
//
// By operators the gradient of the look-up adds rows one after the other, between two transposes of all biases.
#include "threads.h"

namespace {
using namespace focal_twins;

// table [D, heads], rows of it [kinds, N, K] -> bias [kinds, heads, N, K]
void forward(const Arguments& a) {
  const float* table = a.floats(0);
  const int32_t* index = a.integers(1);
  float* bias = a.floats(2);
  const int64_t rows = a.size(0, 0), heads = a.size(0, 1), pairs = a.size(1, 1) * a.size(1, 2);
  parallel(a.size(1, 0) * heads, [=](int64_t task) {
    const int32_t* from = index + task / heads * pairs;
    float *column = scratch(rows), *to = bias + task * pairs;
    for (int64_t i = 0; i < rows; ++i) column[i] = table[i * heads + task % heads];
    for (int64_t i = 0; i < pairs; ++i) to[i] = column[from[i]];
  });
}

// table, index, gradient [kinds, heads, N, K] -> gradient by the table [D, heads]
void backward(const Arguments& a) {
  const int32_t* index = a.integers(1);
  const float* gradient = a.floats(2);
  const int64_t rows = a.size(0, 0), heads = a.size(0, 1), pairs = a.size(1, 1) * a.size(1, 2);
  const auto totals = Blocks(a.size(1, 0), heads * pairs).sum(heads * rows, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t task = first * heads; task < end * heads; ++task) {
      const int32_t* to = index + task / heads * pairs;
      float* column = sums + task % heads * rows;
      for (int64_t i = 0; i < pairs; ++i) column[to[i]] += gradient[task * pairs + i];
    }
  });
  for (int64_t i = 0; i < heads * rows; ++i) a.floats(3)[i] = totals[i % heads * rows + i / heads];
}

}  // namespace

FOCAL_TWINS_KERNEL(position_bias, "fif", forward)
FOCAL_TWINS_KERNEL(position_bias_gradient, "fiff", backward)
