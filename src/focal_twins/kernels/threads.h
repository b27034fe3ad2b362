// Threads that live as long as the process, and the form of a kernel that MindSpore calls.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace focal_twins {

// Calls body(context, i) for each i below `count`, on as many threads as set_threads said; returns when all are done.
// Where another kernel runs at this moment, the calling thread does everything itself.
void run_on_threads(int64_t count, void (*body)(void*, int64_t), void* context);

// The same for a function object. The order and the thread of a call must not change its result.
template <typename Function>
void parallel(int64_t count, Function&& function) {
  using Body = typename std::remove_reference<Function>::type;
  run_on_threads(count, [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &function);
}

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
  bool are(const char* wanted) const {  // one letter for each argument: f is float32, i is int32
    if (static_cast<int>(std::strlen(wanted)) != count) return false;
    for (int i = 0; i < count; ++i)
      if (std::strcmp(types[i], wanted[i] == 'f' ? "float32" : "int32") != 0) return false;
    return true;
  }
};

enum Status { kDone = 0, kWrongTypes = 1, kNoMemory = 2 };

// Runs a kernel on the arguments that MindSpore gives, if they are of the types that it takes.
template <typename Kernel>
int run_kernel(const char* types, int count, void** data, int* ranks, int64_t** shapes, const char** given, Kernel run) {
  const Arguments arguments{count, data, ranks, shapes, given};
  if (!arguments.are(types)) return kWrongTypes;
  try {
    run(arguments);
  } catch (...) {  // of all that kernels call only allocations throw
    return kNoMemory;
  }
  return kDone;
}

}  // namespace focal_twins

// Defines the function that MindSpore looks up: NAME runs `kernel` on arguments of these types.
#define FOCAL_TWINS_KERNEL(NAME, TYPES, kernel)                                                                        \
  extern "C" int NAME(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {        \
    return focal_twins::run_kernel(TYPES, count, data, ranks, shapes, types, kernel);                                  \
  }
