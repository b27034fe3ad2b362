// What a training step does with all weights: the norm of their gradients, AdamW and the average of the weights, each in
// one pass over all of them.
//
// By operators these are up to eleven for each of several hundred weights. Many weights have a few hundred numbers, and
// starting an operator takes longer than its work.
#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace {
using namespace focal_twins;

int64_t elements(const Arguments& a, int i) {
  int64_t count = 1;
  for (int axis = 0; axis < a.ranks[i]; ++axis) count *= a.size(i, axis);
  return count;
}

// A part of the i-th of several tensors, and all such parts in order. They follow from the shapes alone.
struct Part {
  int tensor;
  int64_t first, count;
};

std::vector<Part> parts(const Arguments& a, int first_tensor, int tensors) {
  const int64_t most = 16384;
  std::vector<Part> found;
  for (int i = 0; i < tensors; ++i) {
    const int64_t count = elements(a, first_tensor + i);
    for (int64_t first = 0; first < count; first += most) found.push_back({i, first, std::min(most, count - first)});
  }
  return found;
}

// any number of tensors -> the sum of the squares of all of their values [1]
void sum_of_squares(const Arguments& a) {
  const auto all = parts(a, 0, a.count - 1);
  std::vector<double> sums(all.size());
  parallel(all.size(), [&](int64_t i) {
    const float* values = a.floats(all[i].tensor) + all[i].first;
    Vec sum = {};
    each_vector(all[i].count, [&](int64_t j, auto n) {
      const Vec x = load(values + j, n);
      sum += x * x;
    });
    sums[i] = focal_twins::sum(sum);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *a.floats(a.count - 1) = static_cast<float>(total);
}

// numbers [6], decays [N], rate scales [N], N weights, N first moments, N second moments, N gradients -> 0 [1]
//
// It writes weights and moments where they are. The numbers are learning rate, the same with the bias corrections of
// both moments, beta 1, beta 2, epsilon with a correction, and the factor of the gradients.
void adamw(const Arguments& a) {
  const float *numbers = a.floats(0), *decays = a.floats(1), *scales = a.floats(2);
  const int tensors = static_cast<int>(a.size(1, 0));
  const auto all = parts(a, 3, tensors);
  parallel(all.size(), [&](int64_t i) {
    const auto [tensor, first, count] = all[i];
    const auto values = [&, tensor = tensor, first = first](int kind) { return a.floats(3 + kind * tensors + tensor) + first; };
    float *__restrict__ weights = values(0), *__restrict__ means = values(1), *__restrict__ squares = values(2);
    const float* __restrict__ gradients = values(3);
    const float kept = 1.0f - numbers[0] * scales[tensor] * decays[tensor], rate = numbers[1] * scales[tensor];
    const float new1 = 1.0f - numbers[2], new2 = 1.0f - numbers[3], epsilon = numbers[4], factor = numbers[5];
    for (int64_t j = 0; j < count; ++j) {
      const float gradient = gradients[j] * factor;
      means[j] += (gradient - means[j]) * new1;
      squares[j] += (gradient * gradient - squares[j]) * new2;
      weights[j] = weights[j] * kept - rate * means[j] / (std::sqrt(squares[j]) + epsilon);
    }
  });
  *a.floats(a.count - 1) = 0.0f;
}

// share [1], N averages, N weights -> 0 [1]
//
// It writes the averages where they are: they go that share of the way to the weights.
void average(const Arguments& a) {
  const float share = *a.floats(0);
  const int tensors = (a.count - 2) / 2;
  const auto all = parts(a, 1, tensors);
  parallel(all.size(), [&](int64_t i) {
    const auto [tensor, first, count] = all[i];
    float* __restrict__ averages = a.floats(1 + tensor) + first;
    const float* __restrict__ weights = a.floats(1 + tensors + tensor) + first;
    for (int64_t j = 0; j < count; ++j) averages[j] += (weights[j] - averages[j]) * share;
  });
  *a.floats(a.count - 1) = 0.0f;
}

}  // namespace

FOCAL_TWINS_KERNEL(sum_of_squares, "f*", sum_of_squares)
FOCAL_TWINS_KERNEL(adamw_update, "f*", adamw)
FOCAL_TWINS_KERNEL(average_update, "f*", average)
