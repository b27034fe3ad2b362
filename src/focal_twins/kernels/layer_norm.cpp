// LayerNorm of rows, and its gradient: each reads the rows once from memory, and once more from the cache.
//
// By operators the gradient is two dozen passes over memory. Here a row's sums are taken while the row is in the first
// cache. The mean comes first and the variance is of centred values: a difference of large sums would lose digits.
#include <cmath>

#include "rows.h"
#include "threads.h"
#include "vectors.h"

namespace focal_twins {
namespace {

inline float mean_of(const float* row, int64_t width) {
  Vec total{};
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) total += load(row + i);
  total += load_part(row + i, width - i);
  return sum(total) / width;
}

inline float variance_of(const float* row, int64_t width, float mean) {
  Vec total{};
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) {
    const Vec centred = load(row + i) - mean;
    total += centred * centred;
  }
  const Vec centred = load_part(row + i, width - i, mean) - mean;
  return sum(total + centred * centred) / width;
}

// rows [R, C], gamma [C], beta [C], epsilon [1] -> normalised rows [R, C], means [R], 1 / deviations [R]
void forward(const Arguments& a) {
  const float *rows = a.floats(0), *gamma = a.floats(1), *beta = a.floats(2), epsilon = a.floats(3)[0];
  float *out = a.floats(4), *means = a.floats(5), *scales = a.floats(6);
  const int64_t height = a.size(0, 0), width = a.size(0, 1);
  parallel(blocks(height, width), [=](int64_t block) {
    for (int64_t row = first_row(block, width), end = end_row(block, height, width); row < end; ++row) {
      const float* from = rows + row * width;
      float* to = out + row * width;
      const float mean = mean_of(from, width);
      const float scale = 1.0f / std::sqrt(variance_of(from, width, mean) + epsilon);
      means[row] = mean;
      scales[row] = scale;
      int64_t i = 0;
      for (; i + kWidth <= width; i += kWidth)
        store(to + i, (load(from + i) - mean) * scale * load(gamma + i) + load(beta + i));
      const int64_t rest = width - i;
      if (rest) {
        const Vec normal = (load_part(from + i, rest) - mean) * scale;
        store_part(to + i, normal * load_part(gamma + i, rest) + load_part(beta + i, rest), rest);
      }
    }
  });
}

// rows [R, C], gamma [C], means [R], 1 / deviations [R], gradient [R, C] -> gradient by rows [R, C], gamma, beta [C].
//
// With n the normalised row and h = gradient * gamma, a row's gradient is (h - mean(h) - n * mean(h * n)) / deviation.
void backward(const Arguments& a) {
  const float *rows = a.floats(0), *gamma = a.floats(1), *means = a.floats(2), *scales = a.floats(3);
  const float* gradient = a.floats(4);
  float* to_rows = a.floats(5);
  float* const to_parameters[] = {a.floats(6), a.floats(7)};
  const int64_t height = a.size(0, 0), width = a.size(0, 1), whole = width - width % kWidth, rest = width - whole;
  sum_over_blocks(height, width, 2, to_parameters, [=](int64_t first, int64_t end, float* to_gamma) {
    float* to_beta = to_gamma + width;
    for (int64_t row = first; row < end; ++row) {
      const float *x = rows + row * width, *g = gradient + row * width;
      const float mean = means[row], scale = scales[row];
      Vec along_mean{}, along_row{};
      for (int64_t i = 0; i < whole; i += kWidth) {
        const Vec given = load(g + i), normal = (load(x + i) - mean) * scale;
        const Vec by_normal = given * load(gamma + i), product = given * normal;
        along_mean += by_normal;
        along_row += by_normal * normal;
        store(to_gamma + i, load(to_gamma + i) + product);
        store(to_beta + i, load(to_beta + i) + given);
      }
      if (rest) {
        const Vec given = load_part(g + whole, rest), normal = (load_part(x + whole, rest, mean) - mean) * scale;
        const Vec by_normal = given * load_part(gamma + whole, rest), product = given * normal;
        along_mean += by_normal;
        along_row += by_normal * normal;
        store_part(to_gamma + whole, load_part(to_gamma + whole, rest) + product, rest);
        store_part(to_beta + whole, load_part(to_beta + whole, rest) + given, rest);
      }
      const float of_mean = sum(along_mean) / width, of_row = sum(along_row) / width;
      float* to = to_rows + row * width;
      for (int64_t i = 0; i < whole; i += kWidth) {
        const Vec normal = (load(x + i) - mean) * scale;
        store(to + i, (load(g + i) * load(gamma + i) - of_mean - normal * of_row) * scale);
      }
      if (rest) {
        const Vec normal = (load_part(x + whole, rest) - mean) * scale;
        const Vec by_normal = load_part(g + whole, rest) * load_part(gamma + whole, rest);
        store_part(to + whole, (by_normal - of_mean - normal * of_row) * scale, rest);
      }
    }
  });
}

}  // namespace
}  // namespace focal_twins

FOCAL_TWINS_KERNEL(layer_norm, "fffffff", focal_twins::forward)
FOCAL_TWINS_KERNEL(layer_norm_gradient, "ffffffff", focal_twins::backward)
