// GELU of rows plus a bias, gelu(x + b) with gelu(z) = z * Phi(z), in one pass; and its gradient in another.
//
// By operators these are a BiasAdd, nine products and sums, a sigmoid, and as many again backwards, each of which reads
// and writes the largest activations of a network. Phi, the normal distribution function, is sigmoid(z P(z^2)) as in
// layers.Gelu: within 1e-7 after the multiplication by z. The gradient keeps x alone and computes Phi again.
#include "rows.h"
#include "threads.h"
#include "vectors.h"

namespace focal_twins {
namespace {

inline Vec distribution(Vec z) {
  const Vec square = z * z;
  Vec value = square * 3.71728930e-9f - 2.71711680e-7f;
  value = value * square + 8.01844462e-6f;
  value = value * square - 1.11094282e-4f;
  value = value * square - 6.40434163e-5f;
  value = value * square + 7.26651268e-2f;
  value = value * square + 1.59577012f;
  return 1.0f / (1.0f + exponential(-z * value));
}

inline Vec gelu(Vec z) { return z * distribution(z); }

inline Vec gelu_gradient(Vec z) { return distribution(z) + z * (exponential(z * z * -0.5f) * 0.3989422804f); }

// rows [R, C], bias [C] -> gelu [R, C]
void forward(const Arguments& a) {
  const float *rows = a.floats(0), *bias = a.floats(1);
  float* out = a.floats(2);
  const int64_t width = a.size(1, 0), height = a.size(0, 0);
  parallel(blocks(height, width), [=](int64_t block) {
    for (int64_t row = first_row(block, width), end = end_row(block, height, width); row < end; ++row) {
      const float* from = rows + row * width;
      float* to = out + row * width;
      int64_t i = 0;
      for (; i + kWidth <= width; i += kWidth) store(to + i, gelu(load(from + i) + load(bias + i)));
      const int64_t rest = width - i;
      if (rest) store_part(to + i, gelu(load_part(from + i, rest) + load_part(bias + i, rest)), rest);
    }
  });
}

// rows [R, C], bias [C], gradient [R, C] -> gradient by the rows [R, C], by the bias [C]
void backward(const Arguments& a) {
  const float *rows = a.floats(0), *bias = a.floats(1), *gradient = a.floats(2);
  float *to_rows = a.floats(3), *to_bias = a.floats(4);
  const int64_t width = a.size(1, 0), height = a.size(0, 0);
  sum_over_blocks(height, width, 1, to_bias, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t row = first; row < end; ++row) {
      const int64_t at = row * width;
      int64_t i = 0;
      for (; i + kWidth <= width; i += kWidth) {
        const Vec part = load(gradient + at + i) * gelu_gradient(load(rows + at + i) + load(bias + i));
        store(to_rows + at + i, part);
        store(sums + i, load(sums + i) + part);
      }
      const int64_t rest = width - i;
      if (rest) {
        const Vec z = load_part(rows + at + i, rest) + load_part(bias + i, rest);
        const Vec part = load_part(gradient + at + i, rest) * gelu_gradient(z);
        store_part(to_rows + at + i, part, rest);
        store_part(sums + i, load_part(sums + i, rest) + part, rest);
      }
    }
  });
}

}  // namespace
}  // namespace focal_twins

FOCAL_TWINS_KERNEL(bias_gelu, "fff", focal_twins::forward)
FOCAL_TWINS_KERNEL(bias_gelu_gradient, "fffff", focal_twins::backward)
