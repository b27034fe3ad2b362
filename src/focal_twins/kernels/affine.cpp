// Rows times a scale plus a shift for each column, the second half of BatchNorm, and its gradient.
//
// MindSpore's operators that repeat a row over a matrix hold four times their result for as long as the graph lives.
#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

// rows [R, C], scale [C], shift [C] -> rows * scale + shift [R, C]
void forward(const Arguments& a) {
  const float *rows = a.floats(0), *scale = a.floats(1), *shift = a.floats(2);
  float* out = a.floats(3);
  const int64_t width = a.size(0, 1);
  Blocks(a.size(0, 0), width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t at = first * width; at < end * width; at += width)
      each_vector(width, [=](int64_t i, auto n) {
        store(out + at + i, load(rows + at + i, n) * load(scale + i, n) + load(shift + i, n), n);
      });
  });
}

// rows [R, C], scale [C], gradient [R, C] -> gradients by the rows [R, C], by scale [C] and by shift [C]
void backward(const Arguments& a) {
  const float *rows = a.floats(0), *scale = a.floats(1), *gradient = a.floats(2);
  float* to_rows = a.floats(3);
  const int64_t width = a.size(0, 1);
  const auto totals = Blocks(a.size(0, 0), width).sum(2 * width, [=](int64_t first, int64_t end, float* sums) {
    for (int64_t at = first * width; at < end * width; at += width)
      each_vector(width, [=](int64_t i, auto n) {
        const Vec g = load(gradient + at + i, n);
        store(to_rows + at + i, g * load(scale + i, n), n);
        store(sums + i, load(sums + i, n) + g * load(rows + at + i, n), n);
        store(sums + width + i, load(sums + width + i, n) + g, n);
      });
  });
  std::copy_n(totals.begin(), width, a.floats(4));
  std::copy_n(totals.begin() + width, width, a.floats(5));
}

}  // namespace

FOCAL_TWINS_KERNEL(affine, "ffff", forward)
FOCAL_TWINS_KERNEL(affine_gradient, "ffffff", backward)
