// A residual sum under stochastic depth, shortcut + scale * branch with a scale for each sample, and its gradient.
//
// By operators the scales are spread over the sample, to a matrix as large as the branch that the gradient keeps.
#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

// Calls function(place, scale, count) for every vector of the first argument, [B, L, C].
template <typename Function>
void each_scaled(const Arguments& a, const float* scales, Function function) {
  const int64_t width = a.size(0, 2), length = a.size(0, 1);
  Blocks(a.size(0, 0) * length, width).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      const float scale = scales[row / length];
      each_vector(width, [=](int64_t i, auto n) { function(row * width + i, scale, n); });
    }
  });
}

// shortcut [B, L, C], branch [B, L, C], scales [B] -> sum [B, L, C]
void forward(const Arguments& a) {
  const float *shortcut = a.floats(0), *branch = a.floats(1);
  float* out = a.floats(3);
  each_scaled(a, a.floats(2), [=](int64_t i, float scale, auto n) {
    store(out + i, load(shortcut + i, n) + load(branch + i, n) * scale, n);
  });
}

// gradient [B, L, C], scales [B] -> gradient by the branch [B, L, C]
void backward(const Arguments& a) {
  const float* gradient = a.floats(0);
  float* out = a.floats(2);
  each_scaled(a, a.floats(1), [=](int64_t i, float scale, auto n) { store(out + i, load(gradient + i, n) * scale, n); });
}

}  // namespace

FOCAL_TWINS_KERNEL(scaled_branch, "ffff", forward)
FOCAL_TWINS_KERNEL(scaled_branch_gradient, "fff", backward)
