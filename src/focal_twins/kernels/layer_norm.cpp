// LayerNorm of rows, and its gradient: each reads the rows once from memory, and once or twice more from the cache.
//
// By operators the gradient is two dozen passes over memory. The mean comes first and the variance is of centred values:
// a difference of large sums would lose digits.
#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

// rows [R, C], gamma [C], beta [C], epsilon [1] -> normalised rows [R, C], means [R], 1 / deviations [R]
void forward(const Arguments& a) {
  const float *rows = a.floats(0), *gamma = a.floats(1), *beta = a.floats(2), epsilon = a.floats(3)[0];
  float *out = a.floats(4), *means = a.floats(5), *scales = a.floats(6);
  const int64_t width = a.size(0, 1);
  Blocks(a.size(0, 0), width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const float* from = rows + row * width;
      float* to = out + row * width;
      Vec total{}, squares{};
      each_vector(width, [&](int64_t i, auto n) { total += load(from + i, n); });
      const float mean = sum(total) / width;
      each_vector(width, [&](int64_t i, auto n) {
        const Vec centred = load(from + i, n, mean) - mean;
        squares += centred * centred;
      });
      const float scale = 1.0f / std::sqrt(sum(squares) / width + epsilon);
      each_vector(width, [=](int64_t i, auto n) {
        const Vec normal = (load(from + i, n) - mean) * scale;
        store(to + i, normal * load(gamma + i, n) + load(beta + i, n), n);
      });
      means[row] = mean;
      scales[row] = scale;
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
  const int64_t width = a.size(0, 1);
  const auto totals = Blocks(a.size(0, 0), width).sum(2 * width, [=](int64_t first, int64_t end, float* to_gamma) {
    float* to_beta = to_gamma + width;
    for (int64_t row = first; row < end; ++row) {
      const float *x = rows + row * width, *g = gradient + row * width;
      const float mean = means[row], scale = scales[row];
      float* to = to_rows + row * width;
      Vec along_mean{}, along_row{};
      each_vector(width, [&](int64_t i, auto n) {
        const Vec given = load(g + i, n), normal = (load(x + i, n, mean) - mean) * scale;
        const Vec by_normal = given * load(gamma + i, n);
        along_mean += by_normal;
        along_row += by_normal * normal;
        store(to_gamma + i, load(to_gamma + i, n) + given * normal, n);
        store(to_beta + i, load(to_beta + i, n) + given, n);
      });
      const float of_mean = sum(along_mean) / width, of_row = sum(along_row) / width;
      each_vector(width, [=](int64_t i, auto n) {
        const Vec normal = (load(x + i, n) - mean) * scale, by_normal = load(g + i, n) * load(gamma + i, n);
        store(to + i, (by_normal - of_mean - normal * of_row) * scale, n);
      });
    }
  });
  std::copy_n(totals.begin(), width, a.floats(6));
  std::copy_n(totals.begin() + width, width, a.floats(7));
}

}  // namespace

FOCAL_TWINS_KERNEL(layer_norm, "fffffff", forward)
FOCAL_TWINS_KERNEL(layer_norm_gradient, "ffffffff", backward)
