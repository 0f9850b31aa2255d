// Attention to keys and values in bfloat16 with `vdpbf16ps`: queries and weights are rounded to bfloat16 too, as the
// plain form in JAX does. Included by path_avx512_bf16.cc inside its target.
//
// Scores: sixteen keys lie in the lanes, two neighbouring elements of each, so that no sum over lanes is needed.
// Values: two neighbouring positions share a lane. Both orders follow from the positions alone. The cache itself is
// read row after row, for both: read in pieces it comes at a third of the rate (tests/bench/LOG.md).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "attention.h"
#include "exponential.h"

namespace gemmule {
namespace {

constexpr int64_t kNarrowSize = 1024;  // largest head
constexpr float kUnseen = -std::numeric_limits<float>::infinity();
alignas(64) const uint16_t kNoValue[kNarrowSize] = {};

inline __m512bh as_pairs(__m512i x) { return (__m512bh)x; }

inline __m512 dot_pairs(__m512 sum, __m512i a, int32_t b) {
  return _mm512_dpbf16_ps(sum, as_pairs(a), as_pairs(_mm512_set1_epi32(b)));
}

inline __m256i load_half(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

inline int32_t pair_at(const uint16_t* from) {
  int32_t pair;
  std::memcpy(&pair, from, 4);
  return pair;
}

// Sixteen floats to bfloat16.
inline void narrow(__m512 x, uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

// Sixteen rows of sixteen dwords -> sixteen columns. `columns` of them are read and written.
inline void transpose(const uint16_t* const* rows, int64_t at, int columns, __m512i* out) {
  const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_epi32(mask, rows[i] + at);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // r[i + j]: column 4 * lane + j of rows i to i + 3
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    const __m512i all[4] = {_mm512_shuffle_i32x4(even, even2, 0x88), _mm512_shuffle_i32x4(odd, odd2, 0x88),
                            _mm512_shuffle_i32x4(even, even2, 0xdd), _mm512_shuffle_i32x4(odd, odd2, 0xdd)};
    for (int lane = 0; lane < 4; ++lane)
      if (4 * lane + j < columns) _mm512_storeu_si512(out + 4 * lane + j, all[lane]);
  }
}

// One span for up to kMaxRows rows. Keys are taken in blocks of sixteen from `start`, a multiple of sixteen, on.
struct NarrowSpan {
  const AttentionTask& task;
  const QueryRows& rows;
  int64_t start, blocks, half;
  alignas(64) uint16_t queries[kMaxRows * kNarrowSize];
  alignas(64) float scores[kMaxGroup * kSpan];
  alignas(64) uint16_t weights[kMaxGroup * kSpan];
  const uint16_t* keys[kSpan];
  const uint16_t* values[kSpan];

  NarrowSpan(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count)
      : task(task), rows(rows), start(first / 16 * 16), blocks((first + count - start + 15) / 16), half(task.size / 2) {
    const auto *all_keys = static_cast<const uint16_t*>(task.keys), *all_values = static_cast<const uint16_t*>(task.values);
    int64_t cell = start % task.length;
    for (int64_t i = 0; i < 16 * blocks; ++i, cell = cell + 1 < task.length ? cell + 1 : 0) {
      const int64_t at = rows.base + cell * task.size, position = start + i;
      keys[i] = all_keys + at;
      values[i] = position < first || position >= first + count ? kNoValue : all_values + at;  // may be anything
    }
    for (int t = 0; t < rows.tokens; ++t)
      for (int g = 0; g < rows.heads; ++g)
        for (int64_t h = 0; h < task.size; h += 16)
          narrow(_mm512_loadu_ps(rows.query + t * task.query_stride + g * task.size + h),
                 queries + (t * rows.heads + g) * task.size + h);
  }

  // Vectors of a pair of positions in the staged values.
  int64_t values_stride() const { return (task.size + 31) / 32 * 2; }

  // Which blocks row r sees: [low, high).
  int64_t low(int r) const {
    const int64_t first = rows.first(r / rows.heads);
    return first <= start ? 0 : std::min((first - start) / 16, blocks);
  }
  int64_t high(int r) const {
    const int64_t last = rows.last(r / rows.heads);
    return last < start ? 0 : std::min((last - start) / 16 + 1, blocks);
  }
};

// Scores of rows [r, r + R) for the blocks [block, block + C), whose keys lie transposed in `columns`.
template <int R, int C>
inline void score_blocks(const NarrowSpan& span, int r, int64_t block, const __m512i* columns, float* scores) {
  __m512 sum[R][C];
  for (int i = 0; i < R; ++i)
    for (int c = 0; c < C; ++c) sum[i][c] = _mm512_setzero_ps();
  const uint16_t* query = span.queries + r * span.task.size;
  for (int64_t h = 0; h < span.half; ++h) {
    __m512i key[C];
    for (int c = 0; c < C; ++c) key[c] = columns[c * span.half + h];
    for (int i = 0; i < R; ++i) {
      const int32_t pair = pair_at(query + i * span.task.size + 2 * h);
      for (int c = 0; c < C; ++c) sum[i][c] = dot_pairs(sum[i][c], key[c], pair);
    }
  }
  for (int i = 0; i < R; ++i)
    for (int c = 0; c < C; ++c) _mm512_storeu_ps(scores + i * kSpan + (block + c) * 16, sum[i][c]);
}

// Scores of one row to weights; blocks outside [low, high) get weight 0 where the tile computes them.
inline void soften_row(const NarrowSpan& span, int r, int64_t low, int64_t high, float* scores, uint16_t* weights,
                       float* top, float* total) {
  const int64_t own_low = span.low(r), own_high = span.high(r);
  const int64_t first = span.rows.first(r / span.rows.heads), last = span.rows.last(r / span.rows.heads);
  const float cap = span.task.softcap, scale = span.task.scale;
  for (int64_t i = 16 * own_low; i < 16 * own_high; ++i) scores[i] *= scale;
  if (cap > 0.0f) {
    for (int64_t i = 16 * own_low; i < 16 * own_high; ++i) {
      const float x = scores[i] / cap, e = exp_below_zero(-2.0f * std::fabs(x));
      scores[i] = std::copysign((1.0f - e) / (1.0f + e), x) * cap;
    }
  }
  for (int64_t i = 16 * own_low; i < first - span.start; ++i) scores[i] = kUnseen;
  for (int64_t i = last + 1 - span.start; i < 16 * own_high; ++i) scores[i] = kUnseen;
  *top = kUnseen;
  *total = 0.0f;
  for (int64_t b = low; b < high; ++b) _mm256_store_si256(reinterpret_cast<__m256i*>(weights + 16 * b), _mm256_setzero_si256());
  if (own_low >= own_high) return;
  __m512 highest = _mm512_load_ps(scores + 16 * own_low);
  for (int64_t b = own_low + 1; b < own_high; ++b) highest = _mm512_max_ps(_mm512_load_ps(scores + 16 * b), highest);
  const float most = _mm512_reduce_max_ps(highest);
  for (int64_t i = 16 * own_low; i < 16 * own_high; ++i) scores[i] = exp_below_zero(scores[i] - most);
  *top = most;
  __m512 sum = _mm512_setzero_ps();
  for (int64_t b = own_low; b < own_high; ++b) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(scores + 16 * b));
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + 16 * b), rounded);
    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
  *total = _mm512_reduce_add_ps(sum);
}

// Weighted values of R rows for C times 32 elements from `h` on, of which the last 16 may not exist.
template <int R, int C>
inline void mix_columns(const NarrowSpan& span, int64_t low, int64_t high, int64_t h, const __m512i* pairs,
                        const uint16_t* weights, float* sums) {
  __m512 sum[R][2 * C];
  for (int j = 0; j < R; ++j)
    for (int c = 0; c < 2 * C; ++c) sum[j][c] = _mm512_setzero_ps();
  const int64_t left = span.task.size - h, stride = span.values_stride();
  const __m512i* value = pairs + 8 * low * stride + h / 16;
  for (int64_t i = 16 * low; i < 16 * high; i += 2, value += stride) {
    __m512i v[2 * C];
    for (int c = 0; c < 2 * C; ++c) v[c] = value[c];
    for (int j = 0; j < R; ++j) {
      const int32_t pair = pair_at(weights + j * kSpan + i);
      for (int c = 0; c < 2 * C; ++c) sum[j][c] = dot_pairs(sum[j][c], v[c], pair);
    }
  }
  const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i upper = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int j = 0; j < R; ++j) {
    for (int c = 0; c < C; ++c) {
      float* to = sums + j * span.task.size + h + 32 * c;
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(sum[j][2 * c], lower, sum[j][2 * c + 1]));
      if (left - 32 * c >= 32) _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(sum[j][2 * c], upper, sum[j][2 * c + 1]));
    }
  }
}

// Rows [r, r + R) of a span: scores, weights, values.
template <int R>
inline void attend_rows(NarrowSpan& span, int r, const __m512i* columns, const __m512i* pairs, const Partial& out) {
  constexpr int kBlocks = R >= 4 ? 2 : 4, kColumns = R >= 5 ? 1 : R >= 3 ? 2 : 4;
  int64_t low = span.blocks, high = 0;
  for (int i = 0; i < R; ++i) {
    if (span.low(r + i) >= span.high(r + i)) continue;
    low = std::min(low, span.low(r + i));
    high = std::max(high, span.high(r + i));
  }
  int64_t block = low;
  for (; block + kBlocks <= high; block += kBlocks)
    score_blocks<R, kBlocks>(span, r, block, columns + block * span.half, span.scores);
  for (; block < high; ++block) score_blocks<R, 1>(span, r, block, columns + block * span.half, span.scores);
  for (int i = 0; i < R; ++i)
    soften_row(span, r + i, low, high, span.scores + i * kSpan, span.weights + i * kSpan, out.top + r + i,
               out.total + r + i);
  float* sums = out.sums + r * span.task.size;
  int64_t h = 0;
  for (; h + 32 * kColumns <= span.task.size; h += 32 * kColumns)
    mix_columns<R, kColumns>(span, low, high, h, pairs, span.weights, sums);
  for (; h < span.task.size; h += 32) mix_columns<R, 1>(span, low, high, h, pairs, span.weights, sums);
}

// Asks for the same row of the next span: the processor's own prefetcher does not look across what is computed between.
inline void fetch_later(const uint16_t* row, int64_t size) {
  for (int64_t h = 0; h < size; h += 32)
    _mm_prefetch(reinterpret_cast<const char*>(row + kSpan * size + h), _MM_HINT_T1);
}

// Keys of a block of sixteen, transposed: columns [half] of sixteen keys.
inline void stage_keys(const NarrowSpan& span, int64_t block, __m512i* columns) {
  alignas(64) uint16_t rows[16 * kNarrowSize];
  const uint16_t* starts[16];
  for (int i = 0; i < 16; ++i) {
    uint16_t* row = rows + i * span.task.size;
    starts[i] = row;
    fetch_later(span.keys[16 * block + i], span.task.size);
    for (int64_t h = 0; h < span.task.size; h += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(row + h), load_half(span.keys[16 * block + i] + h));
  }
  for (int64_t h = 0; h < span.half; h += 16)
    transpose(starts, 2 * h, static_cast<int>(std::min<int64_t>(16, span.half - h)), columns + h);
}

// Values of a block of sixteen positions, two neighbours to a lane: for each pair and 32 elements two vectors.
inline void stage_values(const NarrowSpan& span, int64_t block, __m512i* pairs) {
  for (int64_t i = 16 * block; i < 16 * block + 16; i += 2) {
    fetch_later(span.values[i], span.task.size);
    fetch_later(span.values[i + 1], span.task.size);
    for (int64_t h = 0; h < span.task.size; h += 32) {
      const __mmask16 mask = span.task.size - h >= 32 ? 0xffff : 0xff;
      const __m512i one = _mm512_maskz_loadu_epi32(mask, span.values[i] + h);
      const __m512i two = _mm512_maskz_loadu_epi32(mask, span.values[i + 1] + h);
      *pairs++ = _mm512_unpacklo_epi16(one, two);
      *pairs++ = _mm512_unpackhi_epi16(one, two);
    }
  }
}

// Memory of a thread for the keys and values of a span.
inline __m512i* staging(int64_t vectors) {
  static thread_local std::unique_ptr<__m512i[]> memory;
  static thread_local int64_t room = 0;
  if (room < vectors) {
    memory.reset(new __m512i[static_cast<size_t>(vectors)]);
    room = vectors;
  }
  return memory.get();
}

void narrow_span(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count, const Partial& out) {
  NarrowSpan span(task, rows, first, count);
  __m512i* columns = staging(kSpan / 16 * (span.half + span.values_stride() * 8));
  __m512i* pairs = columns + kSpan / 16 * span.half;
  for (int64_t block = 0; block < span.blocks; ++block) stage_keys(span, block, columns + block * span.half);
  for (int64_t block = 0; block < span.blocks; ++block)
    stage_values(span, block, pairs + block * 8 * span.values_stride());
  const int all = rows.tokens * rows.heads;
  for (int r = 0; r < all; r += 8) {
    switch (std::min(8, all - r)) {
      case 1: attend_rows<1>(span, r, columns, pairs, out); break;
      case 2: attend_rows<2>(span, r, columns, pairs, out); break;
      case 3: attend_rows<3>(span, r, columns, pairs, out); break;
      case 4: attend_rows<4>(span, r, columns, pairs, out); break;
      case 5: attend_rows<5>(span, r, columns, pairs, out); break;
      case 6: attend_rows<6>(span, r, columns, pairs, out); break;
      case 7: attend_rows<7>(span, r, columns, pairs, out); break;
      default: attend_rows<8>(span, r, columns, pairs, out); break;
    }
  }
}

}  // namespace
}  // namespace gemmule
