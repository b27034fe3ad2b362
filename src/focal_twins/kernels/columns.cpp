// Copies a matrix into one of another width.
#include "threads.h"

namespace {
using namespace focal_twins;

// a [R, C] -> the first columns of a [R, D]; zeros in the columns that a does not have
void fit_columns(const Arguments& arguments) {
  const float* from = arguments.floats(0);
  float* to = arguments.floats(1);
  const int64_t width = arguments.size(0, 1), wanted = arguments.size(1, 1), copied = std::min(width, wanted);
  Blocks(arguments.size(0, 0), wanted).each([=](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row) {
      std::copy(from + row * width, from + row * width + copied, to + row * wanted);
      std::fill(to + row * wanted + copied, to + (row + 1) * wanted, 0.0f);
    }
  });
}

}  // namespace

FOCAL_TWINS_KERNEL(fit_columns, "ff", fit_columns)
