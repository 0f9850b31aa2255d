// Attention of query rows to the cached keys of their slots: what is asked, and how it is cut.
//
// A cache lies as [slots + 1, kv heads, length, head size]; position p of a slot is in cell p % length. Keys are taken
// in spans of kSpan positions, cut at multiples of kSpan whatever the batch, each with its own maximum and sum,
// and spans are joined in ascending order: a row's result depends on nothing but the row. Rows are computed several
// at a time, so that a key read once serves all of them.
#pragma once

#include <cstdint>

namespace gemmule {

constexpr int64_t kSpan = 256;
constexpr int kMaxGroup = 8;   // query heads computed together; more take several turns
constexpr int kMaxRows = 64;   // rows computed together: tokens times heads

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

// Some tokens of one sequence and some heads that share a key head. Row `t * heads + g` is head g of token t.
struct QueryRows {
  int64_t base;  // where the keys and values of their slot and head begin
  const float* query;
  float* out;
  int tokens, heads;
  const int32_t* positions;  // of each token, -1 for padding
  int64_t limit;             // how many keys a row sees at most

  int64_t last(int token) const { return positions[token]; }
  int64_t first(int token) const { return positions[token] < limit ? 0 : positions[token] - limit + 1; }
};

// The softmax of a span before normalisation, of every row: highest score, sum of weights (0: sees nothing), weighted
// values [rows, size].
struct Partial {
  float* top;
  float* total;
  float* sums;
};

// The instruction-set specific parts of one path.
struct AttentionPath {
  // How many tokens `span` takes at once.
  int (*tokens)(const AttentionTask& task, int heads);
  // Positions [first, first + count) of one span.
  void (*span)(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count, const Partial& out);
  // Adds a later span of `count` rows to earlier ones.
  void (*join)(const AttentionTask& task, int count, const Partial& later, const Partial& all);
};

}  // namespace gemmule
