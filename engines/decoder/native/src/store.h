// Writes new keys or values into the cache, in place, rounded to its type.
#pragma once

#include <cstdint>

namespace gemmule {

// Where one token's vectors go in a cache [cache slots, kv heads, length, size]: position p to cell p % length.
struct StoreTask {
  int64_t slot, position;  // a negative position is padding and skipped
  int64_t kv_heads, length, size, cache_slots;
};

// `fresh` is [kv heads, size]; the cache is float32 where `wide`, else bfloat16.
void store_token(const StoreTask& task, const float* fresh, bool wide, void* cache);

}  // namespace gemmule
