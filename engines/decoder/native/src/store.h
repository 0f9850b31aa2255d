// Writes new keys or values into the cache, in place, rounded to its type.
#pragma once

#include <cstdint>

namespace gemmule {

struct StoreTask {
  const float* fresh;  // [batch, time, kv heads, size]
  const int32_t* slots;
  const int32_t* positions;  // [batch, time], -1 for padding, which is skipped
  int64_t batch, time, kv_heads, length, size, cache_slots;
};

// `cache` is [cache slots, kv heads, length, size]; position p goes to cell p % length.
void store(const StoreTask& task, float* cache);
void store(const StoreTask& task, uint16_t* cache);  // bfloat16

}  // namespace gemmule
