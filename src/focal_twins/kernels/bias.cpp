// GELU of rows plus a bias, gelu(x + b) with gelu(z) = z * Phi(z), in one pass; and its gradient in another.
//
// By operators these are a sum, nine products and sums and a sigmoid, and as many again backwards, each of which reads
// and writes the largest activations of a network. Phi, the normal distribution function, is sigmoid(z P(z^2)) as in
// layers.Gelu: within 1e-7 after the multiplication by z. The gradient needs x alone: it computes Phi again, and the
// result as well, so that a network need not keep that for the gradient of the layer that follows.
#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

FOCAL_TWINS_INLINE Vec distribution(Vec z) {
  const Vec square = z * z;
  Vec value = square * 3.71728930e-9f - 2.71711680e-7f;
  value = value * square + 8.01844462e-6f;
  value = value * square - 1.11094282e-4f;
  value = value * square - 6.40434163e-5f;
  value = value * square + 7.26651268e-2f;
  value = value * square + 1.59577012f;
  const Vec power = -z * value;
  const Vec result = 1.0f / (1.0f + exponential(power));
  return power > 88.0f ? Vec{} : result;  // beyond what the exponential takes
}

// rows [R, C], bias [C] -> gelu [R, C]
void forward(const Arguments& a) {
  const float *rows = a.floats(0), *bias = a.floats(1);
  float* out = a.floats(2);
  const int64_t width = a.size(1, 0);
  Blocks(a.size(0, 0), width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t at = first * width; at < end * width; at += width)
      each_vector(width, [=](int64_t i, auto n) {
        const Vec z = load(rows + at + i, n) + load(bias + i, n);
        store(out + at + i, z * distribution(z), n);
      });
  });
}

// rows [R, C], bias [C], gradient [R, C] -> gradient by the rows [R, D], by the bias [C], gelu [R, D]
//
// D is at least C. There are zeros in the columns from C on.
void backward(const Arguments& a) {
  const float *rows = a.floats(0), *bias = a.floats(1), *gradient = a.floats(2);
  float *to_rows = a.floats(3), *out = a.floats(5);
  const int64_t width = a.size(1, 0), wide = a.size(3, 1);
  const auto to_bias = Blocks(a.size(0, 0), width).sum(width, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t row = first; row < end; ++row) {
      const int64_t at = row * width, to = row * wide;
      each_vector(width, [=](int64_t i, auto n) {
        const Vec z = load(rows + at + i, n) + load(bias + i, n);
        const Vec phi = distribution(z);
        const Vec slope = phi + z * (exponential(z * z * -0.5f) * 0.3989422804f);
        const Vec part = load(gradient + at + i, n) * slope;
        store(to_rows + to + i, part, n);
        store(out + to + i, z * phi, n);
        store(sums + i, load(sums + i, n) + part, n);
      });
      for (float* padded : {to_rows, out}) std::fill(padded + to + width, padded + to + wide, 0.0f);
    }
  });
  std::copy(to_bias.begin(), to_bias.end(), a.floats(4));
}

// rows [R, C] -> sums of the columns [C]: the gradient of a bias that is added to rows
void sum_columns(const Arguments& a) {
  const float* rows = a.floats(0);
  const int64_t width = a.size(0, 1);
  const auto totals = Blocks(a.size(0, 0), width).sum(width, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t at = first * width; at < end * width; at += width)
      each_vector(width, [=](int64_t i, auto n) { store(sums + i, load(sums + i, n) + load(rows + at + i, n), n); });
  });
  std::copy(totals.begin(), totals.end(), a.floats(1));
}

}  // namespace

FOCAL_TWINS_KERNEL(bias_gelu, "fff", forward)
FOCAL_TWINS_KERNEL(bias_gelu_gradient, "ffffff", backward)
FOCAL_TWINS_KERNEL(column_sums, "ff", sum_columns)
