// A few threads that split one product at a time, beside XLA's own.
//
// Workers spin for a short while after a job, since the next product of a decode step comes within microseconds,
// then sleep. A call that finds the pool busy (XLA may run two products at once) does its work alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gemmule {

class Pool {
 public:
  using Work = void (*)(void* context, int64_t chunk);

  explicit Pool(int threads);
  ~Pool();

  // Calls work(context, 0 .. chunks - 1), each once, on this and the pool's threads; returns when all are done.
  void run(int64_t chunks, Work work, void* context);

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void loop();
  bool claim();

  std::vector<std::thread> workers_;
  std::mutex busy_;
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  // High half: the job's number; low half: chunks nobody has taken yet. One compare-and-swap takes a chunk, so
  // that a late worker can never touch the next job with the last one's context.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};
  Work work_ = nullptr;
  void* context_ = nullptr;
};

// The pool of this process, made on first use with as many threads as were set, or as there are processors.
Pool& pool();

// Calls work(chunk) for each of 0 .. chunks - 1 on the pool's threads.
template <class Work>
void parallel(int64_t chunks, const Work& work) {
  const auto call = [](void* context, int64_t chunk) { (*static_cast<const Work*>(context))(chunk); };
  pool().run(chunks, call, const_cast<void*>(static_cast<const void*>(&work)));
}

constexpr int64_t kSerialElements = 16 << 10;  // fewer are not worth waking a thread for

// Calls work(row) for each of 0 .. rows - 1, several rows of `elements` each to a chunk.
template <class Work>
void for_rows(int64_t rows, int64_t elements, const Work& work) {
  const int64_t step = std::max<int64_t>(1, kSerialElements / elements);
  parallel((rows + step - 1) / step, [&](int64_t chunk) {
    for (int64_t row = chunk * step; row < std::min((chunk + 1) * step, rows); ++row) work(row);
  });
}

// Sets the number of threads; effective before the first product only.
void set_threads(int threads);

}  // namespace gemmule
