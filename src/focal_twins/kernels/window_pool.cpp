// Focal attention's tokens of a coarser level: weighted sums of the tokens of windows, put behind the tokens themselves.
//
// By operators the tokens are gathered window by window and then copied again, to stand in one matrix with the sums.
#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

constexpr int64_t kColumns = 64;  // of a task of the gradient

// tokens [B, T, C], weight [1, area], bias [1], rows of each window's tokens [parts, area] -> [B, T + parts, C]
void forward(const Arguments& a) {
  const float *tokens = a.floats(0), *weight = a.floats(1), bias = a.floats(2)[0];
  const int32_t* index = a.integers(3);
  float* out = a.floats(4);
  const int64_t length = a.size(0, 1), width = a.size(0, 2), area = a.size(3, 1), longer = a.size(4, 1);
  Blocks(a.size(0, 0) * longer, width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const float* from = tokens + row / longer * length * width;
      const int64_t part = row % longer - length;
      if (part < 0) {
        std::copy_n(from + row % longer * width, width, out + row * width);
        continue;
      }
      each_vector(width, [=](int64_t i, auto n) {
        Vec value{};
        for (int64_t j = 0; j < area; ++j) value += load(from + index[part * area + j] * width + i, n) * weight[j];
        store(out + row * width + i, value + bias, n);
      });
    }
  });
}

// tokens, weight, rows, gradient [B, T + parts, C] -> gradient by tokens [B, T, C], weight [1, area], bias [1]
void backward(const Arguments& a) {
  const float *tokens = a.floats(0), *weight = a.floats(1), *gradient = a.floats(3);
  const int32_t* index = a.integers(2);
  float *to_tokens = a.floats(4), *to_weight = a.floats(5);
  const int64_t length = a.size(0, 1), width = a.size(0, 2), parts = a.size(2, 0), area = a.size(2, 1);
  const int64_t pieces = (width + kColumns - 1) / kColumns, tasks = a.size(0, 0) * pieces;
  std::vector<float> sums(tasks * (area + 1) * kWidth, 0.0f);
  float* all = sums.data();
  parallel(tasks, [=](int64_t task) {
    const int64_t first = task % pieces * kColumns, columns = std::min(kColumns, width - first);
    const float* x = tokens + task / pieces * length * width + first;
    const float* g = gradient + task / pieces * (length + parts) * width + first;
    float *to = to_tokens + task / pieces * length * width + first, *of_task = all + task * (area + 1) * kWidth;
    for (int64_t row = 0; row < length; ++row) std::copy_n(g + row * width, columns, to + row * width);
    for (int64_t part = 0; part < parts; ++part)
      each_vector(columns, [=](int64_t i, auto n) {
        const Vec given = load(g + (length + part) * width + i, n);
        for (int64_t j = 0; j < area; ++j) {
          const int64_t at = index[part * area + j] * width + i;
          store(to + at, load(to + at, n) + given * weight[j], n);
          store(of_task + j * kWidth, load(of_task + j * kWidth) + load(x + at, n) * given);
        }
        store(of_task + area * kWidth, load(of_task + area * kWidth) + given);
      });
  });
  for (int64_t j = 0; j <= area; ++j) {
    Vec total{};
    for (int64_t task = 0; task < tasks; ++task) total += load(all + (task * (area + 1) + j) * kWidth);
    *(j < area ? to_weight + j : a.floats(6)) = sum(total);
  }
}

}  // namespace

FOCAL_TWINS_KERNEL(window_pool, "fffif", forward)
FOCAL_TWINS_KERNEL(window_pool_gradient, "ffiffff", backward)
