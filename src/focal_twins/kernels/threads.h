// Threads that live as long as the process, and the form of a kernel that MindSpore calls.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace focal_twins {

// Calls body(context, i) for each i below `count`, on as many threads as set_threads said, or on the calling one alone
// where another kernel runs at this moment; returns when all are done.
void run_on_threads(int64_t count, void (*body)(const void*, int64_t), const void* context);

// The same for a function object. The order and the thread of a call must not change its result.
template <typename Function>
void parallel(int64_t count, const Function& function) {
  const auto body = [](const void* context, int64_t i) { (*static_cast<const Function*>(context))(i); };
  run_on_threads(count, body, &function);
}

// A matrix in blocks of rows that depend on its shape alone: so do results, whatever the threads.
struct Blocks {
  int64_t height, rows, count;  // of the matrix, of a block; number of blocks

  Blocks(int64_t height, int64_t width)  // 64 KB a block: two or three of these fit the second cache
      : height(height), rows(std::max<int64_t>(16384 / std::max<int64_t>(width, 1), 1)),
        count((height + rows - 1) / rows) {}

  // Calls function(first row, end row, block).
  template <typename Function>
  void each(Function function) const {
    parallel(count, [=](int64_t i) { function(i * rows, std::min(height, (i + 1) * rows), i); });
  }

  // Calls function(first row, end row, sums), which adds to `size` sums of its block that start at zero. Returns the
  // totals, block by block in order.
  template <typename Function>
  std::vector<float> sum(int64_t size, Function function) const {
    std::vector<float> sums(count * size, 0.0f), totals(size, 0.0f);
    float* all = sums.data();
    each([=](int64_t first, int64_t end, int64_t block) { function(first, end, all + block * size); });
    for (int64_t block = 0; block < count; ++block)
      for (int64_t i = 0; i < size; ++i) totals[i] += sums[block * size + i];
    return totals;
  }
};

// At least `count` floats of scratch memory of this thread, aligned to a cache line, until its next call.
float* scratch(int64_t count);

// The arguments of a kernel: first inputs, then outputs. They are numbered together.
struct Arguments {
  int count;
  void** data;
  int* ranks;
  int64_t** shapes;
  const char** types;

  float* floats(int i) const { return static_cast<float*>(data[i]); }
  const int32_t* integers(int i) const { return static_cast<const int32_t*>(data[i]); }
  int64_t size(int i, int axis) const { return shapes[i][axis < 0 ? ranks[i] + axis : axis]; }
  // One letter for each argument: f is float32, i is int32. A star at the end: any number, all like the last.
  bool are(const char* wanted) const {
    const int length = static_cast<int>(std::strlen(wanted));
    const bool any_number = wanted[length - 1] == '*';
    if (!any_number && length != count) return false;
    for (int i = 0; i < count; ++i)
      if (std::strcmp(types[i], wanted[any_number ? std::min(i, length - 2) : i] == 'f' ? "float32" : "int32") != 0)
        return false;
    return true;
  }
};

// Runs a kernel on the arguments that MindSpore gives; 1 if they are of other types than it takes, 2 without memory.
inline int run_kernel(void (*run)(const Arguments&), const char* types, const Arguments& arguments) {
  if (!arguments.are(types)) return 1;
  try {
    run(arguments);
  } catch (...) {  // of all that kernels call only allocations throw
    return 2;
  }
  return 0;
}

}  // namespace focal_twins

// Defines the function that MindSpore looks up: NAME runs `kernel` on arguments of these types.
#define FOCAL_TWINS_KERNEL(NAME, TYPES, kernel)                                                                        \
  extern "C" int NAME(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {        \
    return focal_twins::run_kernel(kernel, TYPES, {count, data, ranks, shapes, types});                                \
  }
