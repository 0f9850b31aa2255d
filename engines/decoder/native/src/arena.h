// Working memory of one call, lent from a few blocks that outlive it: decoding comes back every step.
//
// As many arenas exist as calls ever ran at the same time, each as large as its largest call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace gemmule {

class Arena {
 public:
  // `count` uninitialised values, aligned to a cache line, valid until the arena is reset.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  // Forgets everything taken; several blocks become one.
  void reset();

 private:
  struct Block {
    std::unique_ptr<unsigned char[]> memory;
    size_t size;
  };

  void* bytes(size_t size);
  void add(size_t size);

  std::vector<Block> blocks_;
  size_t used_ = 0;  // of the last block
};

// An arena for as long as this object lives.
class Lease {
 public:
  Lease();
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Arena& operator*() { return *arena_; }
  Arena* operator->() { return arena_.get(); }

 private:
  std::unique_ptr<Arena> arena_;
};

}  // namespace gemmule
