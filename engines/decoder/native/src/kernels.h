// The product of quantised activations with packed weights, written once over a vector type `V`.
//
// Included by each path_*.cc with its own V and its own compiler target. Every output is the sum over its blocks
// in ascending order, whatever the number of rows computed together: results do not depend on batch or chunk.
// V has: F (16 floats), I (16 int32), U (64 bytes), X (four int8 inputs, broadcast) and the functions used below.
#pragma once

#include "activations.h"
#include "layout.h"

namespace gemmule {

// Few rows leave reading to the processor's own prefetcher, which looks far enough ahead along one stream; where many
// instructions lie between two lines, asking for the one 1 KiB on gains up to 40 % (tests/bench/LOG.md).
template <bool Ask>
static inline const uint8_t* ahead(const uint8_t* line) {
#if defined(__GNUC__)
  if (Ask) __builtin_prefetch(line + 1024);
#endif
  return line;
}

// The sums of M activation rows with one group: acc[m] is sixteen outputs.
template <class V, int M>
struct Group {
  using F = typename V::F;
  using I = typename V::I;
  using U = typename V::U;

  static void q8_block(const uint8_t* codes, const uint8_t* scales, const Activations* const* x, int64_t k, F* acc) {
    I sum[M];
    for (int m = 0; m < M; ++m) sum[m] = V::start_wide(x[m]->sums[2 * k] + x[m]->sums[2 * k + 1]);
    for (int j = 0; j < 8; ++j) {
      const U w = V::load(ahead<(M >= 8)>(codes + j * kLine));
      for (int m = 0; m < M; ++m) sum[m] = V::dot_wide(sum[m], w, V::input(x[m]->codes + 8 * k + j));
    }
    add_scaled(sum, scales, x, k, acc);
  }

  static void add_scaled(const I* sum, const uint8_t* scales, const Activations* const* x, int64_t k, F* acc) {
    const F scale = V::half(scales);
    for (int m = 0; m < M; ++m)
      acc[m] = V::fma(V::to_float(sum[m]), V::mul(scale, V::set(x[m]->scales[k])), acc[m]);
  }

  static void q8(const uint8_t* group, const Activations* const* x, int64_t inputs, F* acc) {
    const int64_t blocks = inputs / kBlock;
    for (int64_t k = 0; k < blocks; k += 2, group += kLine + 16 * kLine) {
      q8_block(group + kLine, group, x, k, acc);
      if (k + 1 < blocks) q8_block(group + 9 * kLine, group + 2 * kRows, x, k + 1, acc);
    }
  }

  // One block of 4-bit codes; `start` is what V::start takes, per row.
  static void nibbles(const uint8_t* codes, const Activations* const* x, int64_t k, I* sum) {
    for (int j = 0; j < 4; ++j) {
      const U both = V::load(ahead<(M >= 8)>(codes + j * kLine));
      const U low = V::low(both), high = V::high(both);
      for (int m = 0; m < M; ++m) sum[m] = V::dot(sum[m], low, V::input(x[m]->codes + 8 * k + j));
      for (int m = 0; m < M; ++m) sum[m] = V::dot(sum[m], high, V::input(x[m]->codes + 8 * k + 4 + j));
    }
  }

  static void q4_block(const uint8_t* codes, const uint8_t* scales, const Activations* const* x, int64_t k, F* acc) {
    I sum[M];
    for (int m = 0; m < M; ++m) sum[m] = V::start(-8 * (x[m]->sums[2 * k] + x[m]->sums[2 * k + 1]));
    nibbles(codes, x, k, sum);
    add_scaled(sum, scales, x, k, acc);
  }

  static void q4(const uint8_t* group, const Activations* const* x, int64_t inputs, F* acc) {
    const int64_t blocks = inputs / kBlock;
    for (int64_t k = 0; k < blocks; k += 2, group += kLine + 8 * kLine) {
      q4_block(group + kLine, group, x, k, acc);
      if (k + 1 < blocks) q4_block(group + 5 * kLine, group + 2 * kRows, x, k + 1, acc);
    }
  }

  static void q4k(const uint8_t* group, const Activations* const* x, int64_t inputs, F* acc) {
    for (int64_t k = 0; k < inputs / kBlock; k += 8) {
      const uint8_t* meta = group;
      group += 5 * kLine;
      F scaled[M];
      for (int m = 0; m < M; ++m) scaled[m] = V::set(0.0f);
      for (int b = 0; b < 8; ++b, group += 4 * kLine) {
        I sum[M];
        for (int m = 0; m < M; ++m) sum[m] = V::start(0);
        nibbles(group, x, k + b, sum);
        const F scale = V::from_u8(meta + b * kRows);
        for (int m = 0; m < M; ++m)
          scaled[m] = V::fma(V::to_float(sum[m]), V::mul(scale, V::set(x[m]->scales[k + b])), scaled[m]);
      }
      F least[M];
      for (int m = 0; m < M; ++m) least[m] = V::set(0.0f);
      for (int b = 0; b < 8; ++b) {
        const F minimum = V::from_u8(meta + (8 + b) * kRows);
        for (int m = 0; m < M; ++m) least[m] = V::fma(minimum, V::set(x[m]->offsets[k + b]), least[m]);
      }
      const F d = V::half(meta + 16 * kRows), dmin = V::half(meta + 18 * kRows);
      for (int m = 0; m < M; ++m) acc[m] = V::fnma(dmin, least[m], V::fma(d, scaled[m], acc[m]));
    }
  }

  static void q6k(const uint8_t* group, const Activations* const* x, int64_t inputs, F* acc) {
    for (int64_t k = 0; k < inputs / kBlock; k += 8) {
      const uint8_t* meta = group;
      group += 5 * kLine;
      F scaled[M];
      for (int m = 0; m < M; ++m) scaled[m] = V::set(0.0f);
      for (int b = 0; b < 8; ++b, group += 6 * kLine) {
        for (int half = 0; half < 2; ++half) {  // sixteen inputs share a scale
          I sum[M];
          for (int m = 0; m < M; ++m) sum[m] = V::start(-32 * x[m]->sums[2 * (k + b) + half]);
          const U highs = V::load(ahead<(M >= 8)>(group + (4 + half) * kLine));
          for (int j = 0; j < 4; ++j) {
            const U both = V::load(ahead<(M >= 8)>(group + j * kLine));
            const U w = V::join(half ? V::high(both) : V::low(both), highs, j);
            for (int m = 0; m < M; ++m)
              sum[m] = V::dot(sum[m], w, V::input(x[m]->codes + 8 * (k + b) + 4 * half + j));
          }
          const F scale = V::from_s8(meta + (2 * b + half) * kRows);
          for (int m = 0; m < M; ++m)
            scaled[m] = V::fma(V::to_float(sum[m]), V::mul(scale, V::set(x[m]->scales[k + b])), scaled[m]);
        }
      }
      const F d = V::half(meta + 16 * kRows);
      for (int m = 0; m < M; ++m) acc[m] = V::fma(d, scaled[m], acc[m]);
    }
  }

  static void bf16(const uint8_t* group, const Activations* const* x, int64_t inputs, F* acc) {
    F odd[M];
    for (int m = 0; m < M; ++m) odd[m] = V::set(0.0f);
    for (int64_t k = 0; k < round_up(inputs, kBlock); k += 2, group += kLine) {
      const U w = V::load(ahead<(M >= 4)>(group));
      const F first = V::bf16_even(w), second = V::bf16_odd(w);
      for (int m = 0; m < M; ++m) acc[m] = V::fma(first, V::set(x[m]->values[k]), acc[m]);
      for (int m = 0; m < M; ++m) odd[m] = V::fma(second, V::set(x[m]->values[k + 1]), odd[m]);
    }
    for (int m = 0; m < M; ++m) acc[m] = V::add(acc[m], odd[m]);
  }
};

// Writes the sixteen outputs of M rows; the last group may be cut.
template <class V, int M>
void run_rows(Format format, const uint8_t* group, const Activations* const* x, int64_t inputs, int64_t row,
              int64_t outputs, float* const* out) {
  typename V::F acc[M];
  for (int m = 0; m < M; ++m) acc[m] = V::set(0.0f);
  switch (format) {
    case kQ8: Group<V, M>::q8(group, x, inputs, acc); break;
    case kQ4: Group<V, M>::q4(group, x, inputs, acc); break;
    case kQ4K: Group<V, M>::q4k(group, x, inputs, acc); break;
    case kQ6K: Group<V, M>::q6k(group, x, inputs, acc); break;
    default: Group<V, M>::bf16(group, x, inputs, acc); break;
  }
  for (int m = 0; m < M; ++m) {
    if (row + kRows <= outputs) {
      V::store(out[m] + row, acc[m]);
      continue;
    }
    float whole[kRows];
    V::store(whole, acc[m]);
    for (int64_t r = row; r < outputs; ++r) out[m][r] = whole[r - row];
  }
}

// All `count` activation rows with groups [begin, end).
template <class V>
void run_groups(const Task& task, int64_t begin, int64_t end) {
  const int64_t bytes = group_bytes(task.format, task.inputs);
  for (int64_t g = begin; g < end; ++g) {
    const uint8_t* group = task.packed + g * bytes;
    const Activations* x[8];
    float* out[8];
    for (int64_t m = 0; m < task.count;) {
      const int64_t left = task.count - m;
      const int tile = left >= 8 && V::kTile >= 8 ? 8 : left >= 4 && V::kTile >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int i = 0; i < tile; ++i) {
        x[i] = task.x + m + i;
        out[i] = task.out + (m + i) * task.stride;
      }
      const int64_t row = g * kRows;
      switch (tile) {
        case 8: run_rows<V, 8>(task.format, group, x, task.inputs, row, task.outputs, out); break;
        case 4: run_rows<V, 4>(task.format, group, x, task.inputs, row, task.outputs, out); break;
        case 2: run_rows<V, 2>(task.format, group, x, task.inputs, row, task.outputs, out); break;
        default: run_rows<V, 1>(task.format, group, x, task.inputs, row, task.outputs, out); break;
      }
      m += tile;
    }
  }
}

}  // namespace gemmule
