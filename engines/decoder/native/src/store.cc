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
void store_as(const StoreTask& task, const float* from, T* cache) {
  for (int64_t kv = 0; kv < task.kv_heads; ++kv, from += task.size) {
    T* to = cache + ((task.slot * task.kv_heads + kv) * task.length + task.position % task.length) * task.size;
    for (int64_t h = 0; h < task.size; ++h) put(from[h], to + h);
  }
}

}  // namespace

void store_token(const StoreTask& task, const float* fresh, bool wide, void* cache) {
  if (task.position < 0 || task.slot < 0 || task.slot >= task.cache_slots) return;
  if (wide) {
    store_as(task, fresh, static_cast<float*>(cache));
  } else {
    store_as(task, fresh, static_cast<uint16_t*>(cache));
  }
}

}  // namespace gemmule
