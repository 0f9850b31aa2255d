#include "arena.h"

#include <algorithm>
#include <mutex>

namespace gemmule {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLeast = 64 << 10;

// Never destroyed: XLA's threads may still be inside a call when the process exits.
struct Idle {
  std::mutex lock;
  std::vector<std::unique_ptr<Arena>> arenas;
};

Idle& idle() {
  static Idle* instance = new Idle;
  return *instance;
}

}  // namespace

void Arena::add(size_t size) {
  const size_t whole = std::max(size, kLeast) + kAlignment;
  blocks_.push_back({std::unique_ptr<unsigned char[]>(new unsigned char[whole]), whole});
  used_ = static_cast<size_t>(-reinterpret_cast<uintptr_t>(blocks_.back().memory.get()) % kAlignment);
}

void* Arena::bytes(size_t size) {
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || used_ + rounded > blocks_.back().size) add(rounded);
  void* out = blocks_.back().memory.get() + used_;
  used_ += rounded;
  return out;
}

void Arena::reset() {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  if (blocks_.size() > 1) {
    blocks_.clear();
    add(total);
  } else if (!blocks_.empty()) {
    used_ = static_cast<size_t>(-reinterpret_cast<uintptr_t>(blocks_.back().memory.get()) % kAlignment);
  }
}

Lease::Lease() {
  std::lock_guard<std::mutex> lock(idle().lock);
  if (!idle().arenas.empty()) {
    arena_ = std::move(idle().arenas.back());
    idle().arenas.pop_back();
  } else {
    arena_ = std::make_unique<Arena>();
  }
}

Lease::~Lease() {
  arena_->reset();
  std::lock_guard<std::mutex> lock(idle().lock);
  idle().arenas.push_back(std::move(arena_));
}

}  // namespace gemmule
