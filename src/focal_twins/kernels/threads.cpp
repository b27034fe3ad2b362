#include "threads.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace focal_twins {
namespace {

struct Job {
  void (*body)(const void*, int64_t);
  const void* context;
  int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void work() {
    try {
      for (int64_t i; (i = next.fetch_add(1)) < count;) body(context, i);
    } catch (...) {
      failed = true;
      next = count;
    }
  }
};

// Its threads sleep between jobs. They are never joined: at the end of the process they may be waiting.
class Pool {
 public:
  explicit Pool(int helpers) : process(getpid()), helpers(helpers) {
    for (int i = 0; i < helpers; ++i) std::thread([this] { help(); }).detach();
  }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      current = &job;
      ++number;
    }
    wake.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex);
    current = nullptr;  // whoever wakes up from here on finds nothing to do
    idle.wait(lock, [this] { return busy == 0; });
  }

  const pid_t process;
  const int helpers;

 private:
  void help() {
    int64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return number != seen; });
      seen = number;
      Job* job = current;
      if (job == nullptr) continue;
      ++busy;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy == 0) idle.notify_one();
    }
  }

  std::mutex mutex;
  std::condition_variable wake, idle;
  Job* current = nullptr;
  int64_t number = 0;  // of the job
  int busy = 0;
};

std::atomic<int> wanted_threads{1};
std::mutex in_use;  // held while the pool has a job
Pool* pool = nullptr;

}  // namespace

void run_on_threads(int64_t count, void (*body)(const void*, int64_t), const void* context) {
  Job job{body, context, count};
  std::unique_lock<std::mutex> lock(in_use, std::try_to_lock);
  const int helpers = wanted_threads - 1;
  if (count > 1 && helpers > 0 && lock.owns_lock()) {
    // A forked process has the pool's memory but not its threads. What a pool was is left alone: its threads use it.
    if (pool == nullptr || pool->process != getpid() || pool->helpers != helpers) pool = new Pool(helpers);
    pool->run(job);
  } else {
    job.work();
  }
  if (job.failed) throw std::bad_alloc();
}

float* scratch(int64_t count) {
  static thread_local std::vector<float> memory;
  const int64_t line = 16;  // floats
  if (static_cast<int64_t>(memory.size()) < count + line) memory.assign(count + line, 0.0f);
  const auto misplaced = reinterpret_cast<std::uintptr_t>(memory.data()) / sizeof(float) % line;
  return memory.data() + (line - misplaced) % line;
}

}  // namespace focal_twins

extern "C" void focal_twins_set_threads(int count) { focal_twins::wanted_threads = std::max(count, 1); }
