// Cross entropy of rows of logits, log(sum of exp(logits)) - logit of the label, and its gradient.
//
// By operators some ten matrices as large as the logits come and go, and those that repeat a label over its row hold four
// times their result for as long as the graph lives. Logits of segmentation have a row for every pixel.
#include <cmath>
#include <limits>

#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

// The largest logit of a row, and the sum of exp(logit - largest).
std::pair<float, float> spread(const float* row, int64_t width) {
  const float none = -std::numeric_limits<float>::infinity();
  Vec highest = Vec{} + none, total{};
  each_vector(width, [&](int64_t i, auto n) {
    const Vec value = load(row + i, n, none);
    highest = value > highest ? value : highest;
  });
  const float top = largest(highest);
  each_vector(width, [&](int64_t i, auto n) { total += exponential(load(row + i, n, none) - top); });
  return {top, sum(total)};
}

// logits [R, K], labels [R], the label that is ignored [1] -> losses [R], zero where the label is ignored
void forward(const Arguments& a) {
  const float* logits = a.floats(0);
  const int32_t *labels = a.integers(1), ignored = a.integers(2)[0];
  float* out = a.floats(3);
  const int64_t width = a.size(0, 1);
  Blocks(a.size(0, 0), width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const int64_t label = labels[row];
      const auto [top, total] = spread(logits + row * width, width);
      const bool known = label >= 0 && label < width;
      const float own = known ? logits[row * width + label] : std::numeric_limits<float>::quiet_NaN();
      out[row] = label == ignored ? 0.0f : std::log(total) + (top - own);
    }
  });
}

// logits [R, K], labels [R], the label that is ignored [1], gradient [R] -> gradient by the logits [R, K]
void backward(const Arguments& a) {
  const float *logits = a.floats(0), *gradient = a.floats(3);
  const int32_t *labels = a.integers(1), ignored = a.integers(2)[0];
  float* out = a.floats(4);
  const int64_t width = a.size(0, 1);
  Blocks(a.size(0, 0), width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const float *from = logits + row * width, scale = labels[row] == ignored ? 0.0f : gradient[row];
      float* to = out + row * width;
      const auto [top, total] = spread(from, width);
      const float factor = scale / total;
      each_vector(width, [=, top = top](int64_t i, auto n) { store(to + i, exponential(load(from + i, n) - top) * factor, n); });
      if (labels[row] >= 0 && labels[row] < width) to[labels[row]] -= scale;
    }
  });
}

}  // namespace

FOCAL_TWINS_KERNEL(cross_entropy, "fiif", forward)
FOCAL_TWINS_KERNEL(cross_entropy_gradient, "fiiff", backward)
