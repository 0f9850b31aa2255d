#include "store.h"

#include <cstring>

namespace gemmule {
namespace {

inline void put(float value, float* to) { *to = value; }

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline void put(float value, uint16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *to = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16 | 64) : rounded);
}

template <class T>
void store_as(const StoreTask& task, T* cache) {
  const float* from = task.fresh;
  for (int64_t token = 0; token < task.batch * task.time; ++token) {
    const int64_t slot = task.slots[token / task.time], position = task.positions[token];
    const bool skipped = position < 0 || slot < 0 || slot >= task.cache_slots;
    for (int64_t kv = 0; kv < task.kv_heads; ++kv, from += task.size) {
      if (skipped) continue;
      T* to = cache + ((slot * task.kv_heads + kv) * task.length + position % task.length) * task.size;
      for (int64_t h = 0; h < task.size; ++h) put(from[h], to + h);
    }
  }
}

}  // namespace

void store(const StoreTask& task, float* cache) { store_as(task, cache); }
void store(const StoreTask& task, uint16_t* cache) { store_as(task, cache); }

}  // namespace gemmule
