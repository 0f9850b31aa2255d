#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemmule {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPatience = 1000;  // pauses, some tens of microseconds
std::atomic<int> wanted_threads{0};

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int processors() {
  const int count = static_cast<int>(std::thread::hardware_concurrency());
  return count > 0 ? count : 1;
}

}  // namespace

Pool::Pool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { loop(); });
}

Pool::~Pool() {
  stop_ = true;
  {
    std::lock_guard<std::mutex> lock(sleep_);
    wake_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
}

// Takes one chunk and does it; false when none is left.
bool Pool::claim() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (ticket & 0xffffffff) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    work_(context_, static_cast<int64_t>(ticket & 0xffffffff) - 1);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }
  return false;
}

void Pool::loop() {
  using clock = std::chrono::steady_clock;
  auto idle_since = clock::now();
  while (!stop_) {
    bool worked = false;
    while (claim()) worked = true;
    if (worked) idle_since = clock::now();
    for (int i = 0; i < 64 && !(ticket_.load(std::memory_order_relaxed) & 0xffffffff); ++i) relax();
    if (clock::now() - idle_since < kSpin) {
      std::this_thread::yield();  // at once back where nobody else wants the processor
      continue;
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [this] { return stop_ || (ticket_.load() & 0xffffffff); });
    sleeping_.fetch_sub(1);
    idle_since = clock::now();
  }
}

void Pool::run(int64_t chunks, Work work, void* context) {
  std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock || workers_.empty() || chunks < 2) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) work(context, chunk);
    return;
  }
  work_ = work;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(job << 32 | static_cast<uint64_t>(chunks));
  if (sleeping_.load() > 0) {
    std::lock_guard<std::mutex> wake_lock(sleep_);
    wake_.notify_all();
  }
  while (claim()) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) < chunks; ++spins) {
    relax();
    if (spins > kPatience) std::this_thread::yield();  // its worker may wait for this very processor
  }
}

void set_threads(int threads) { wanted_threads = threads; }

Pool& pool() {
  // Never destroyed: XLA's threads may still be inside a product when the process exits.
  static Pool* instance = new Pool(wanted_threads > 0 ? wanted_threads.load() : processors());
  return *instance;
}

}  // namespace gemmule
