// Attention of query rows to the cached keys of their slots: what is asked, and how it is cut.
//
// A cache lies as [slots + 1, kv heads, length, head size]; position p of a slot is in cell p % length. Keys are taken
// in spans of kSpan positions, cut at multiples of kSpan whatever the batch, each with its own maximum and sum,
// and spans are joined in ascending order: a row's result depends on nothing but the row.
#pragma once

#include <cstdint>

namespace gemmule {

constexpr int64_t kSpan = 512;
constexpr int kMaxGroup = 8;  // query heads computed together; more take several turns

struct AttentionTask {
  const float* query;  // [batch, time, heads, size], `query_stride` floats from token to token
  int64_t query_stride;
  const void* keys;    // bfloat16 or float32
  const void* values;
  bool wide;  // keys and values are float32
  const int32_t* slots;
  const int32_t* positions;  // [batch, time], -1 for padding
  int64_t batch, time, heads, kv_heads, length, size, cache_slots;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: none
  float* out;            // [batch, time, heads, size]
};

// The softmax of a span before normalisation: highest score, sum of weights, weighted values [size] per head.
struct Partial {
  float top[kMaxGroup];
  float total[kMaxGroup];
  float* sums[kMaxGroup];
};

// The instruction-set specific parts of one path.
struct AttentionPath {
  void (*span)(const AttentionTask& task, int64_t base, const float* query, int group, int64_t first, int64_t count,
               const Partial& out);
  void (*join)(const AttentionTask& task, int group, const Partial& later, Partial* all);
};

}  // namespace gemmule
