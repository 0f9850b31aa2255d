// The arithmetic of attention, written once over a vector type `V`; included by each path_*.cc like kernels.h.
#pragma once

#include <cmath>

#include "attention.h"
#include "exponential.h"

namespace gemmule {

template <class V>
struct Attention {
  using F = typename V::F;

  static F row(const AttentionTask& task, const void* base, int64_t at) {
    return task.wide ? V::floats(static_cast<const float*>(base) + at)
                     : V::bf16s(static_cast<const uint16_t*>(base) + at);
  }

  // Scores of `count` positions from `first` on: scores[g * kSpan + i].
  template <int G>
  static void score(const AttentionTask& task, int64_t base, const float* query, int64_t first, int64_t count,
                    float* scores) {
    int64_t cell = first % task.length;
    for (int64_t i = 0; i < count; ++i, cell = cell + 1 < task.length ? cell + 1 : 0) {
      const int64_t key = base + cell * task.size;
      F sum[G];
      for (int g = 0; g < G; ++g) sum[g] = V::set(0.0f);
      for (int64_t h = 0; h < task.size; h += 16) {
        const F k = row(task, task.keys, key + h);
        for (int g = 0; g < G; ++g) sum[g] = V::fma(k, V::floats(query + g * task.size + h), sum[g]);
      }
      for (int g = 0; g < G; ++g) scores[g * kSpan + i] = V::total(sum[g]) * task.scale;
    }
  }

  // Scores to weights; fills top and total.
  static void soften(const AttentionTask& task, int64_t count, float* scores, float* top, float* total) {
    if (task.softcap > 0.0f) {
      for (int64_t i = 0; i < count; ++i) {
        const float x = scores[i] / task.softcap, size = std::fabs(x);
        const float e = exp_below_zero(-2.0f * size);
        scores[i] = std::copysign((1.0f - e) / (1.0f + e), x) * task.softcap;
      }
    }
    float highest = scores[0], sum = 0.0f;
    for (int64_t i = 1; i < count; ++i) highest = scores[i] > highest ? scores[i] : highest;
    for (int64_t i = 0; i < count; ++i) scores[i] = exp_below_zero(scores[i] - highest);
    for (int64_t i = 0; i < count; ++i) sum += scores[i];
    *top = highest;
    *total = sum;
  }

  // Sums of `C` vectors of values from place `h` on; more at once read whole cache lines and share the weights.
  template <int G, int C>
  static void mix_columns(const AttentionTask& task, int64_t base, const float* weights, int64_t first, int64_t count,
                          int64_t h, float* const* sums) {
    F sum[G][C];
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < C; ++c) sum[g][c] = V::set(0.0f);
    int64_t cell = first % task.length;
    for (int64_t i = 0; i < count; ++i, cell = cell + 1 < task.length ? cell + 1 : 0) {
      const int64_t value = base + cell * task.size + h;
      F v[C];
      for (int c = 0; c < C; ++c) v[c] = row(task, task.values, value + 16 * c);
      for (int g = 0; g < G; ++g) {
        const F weight = V::set(weights[g * kSpan + i]);
        for (int c = 0; c < C; ++c) sum[g][c] = V::fma(v[c], weight, sum[g][c]);
      }
    }
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < C; ++c) V::store(sums[g] + h + 16 * c, sum[g][c]);
  }

  template <int G>
  static void mix(const AttentionTask& task, int64_t base, const float* weights, int64_t first, int64_t count,
                  float* const* sums) {
    constexpr int kColumns = G <= 4 ? 4 : 2;
    int64_t h = 0;
    for (; h + 16 * kColumns <= task.size; h += 16 * kColumns)
      mix_columns<G, kColumns>(task, base, weights, first, count, h, sums);
    for (; h < task.size; h += 16) mix_columns<G, 1>(task, base, weights, first, count, h, sums);
  }

  template <int G>
  static void span(const AttentionTask& task, int64_t base, const float* query, int64_t first, int64_t count,
                   const Partial& out) {
    float scores[G * kSpan];
    score<G>(task, base, query, first, count, scores);
    for (int g = 0; g < G; ++g)
      soften(task, count, scores + g * kSpan, const_cast<float*>(out.top) + g, const_cast<float*>(out.total) + g);
    mix<G>(task, base, scores, first, count, out.sums);
  }

  // The span [first, first + count) for `group` query heads from `query` on.
  static void any_span(const AttentionTask& task, int64_t base, const float* query, int group, int64_t first,
                       int64_t count, const Partial& out) {
    switch (group) {
      case 1: return span<1>(task, base, query, first, count, out);
      case 2: return span<2>(task, base, query, first, count, out);
      case 3: return span<3>(task, base, query, first, count, out);
      case 4: return span<4>(task, base, query, first, count, out);
      case 5: return span<5>(task, base, query, first, count, out);
      case 6: return span<6>(task, base, query, first, count, out);
      case 7: return span<7>(task, base, query, first, count, out);
      default: return span<8>(task, base, query, first, count, out);
    }
  }

  // Adds a later span to an earlier one.
  static void join(const AttentionTask& task, int group, const Partial& later, Partial* all) {
    for (int g = 0; g < group; ++g) {
      const float top = later.top[g] > all->top[g] ? later.top[g] : all->top[g];
      const float old = exp_below_zero(all->top[g] - top), fresh = exp_below_zero(later.top[g] - top);
      for (int64_t h = 0; h < task.size; h += 16) {
        const F kept = V::mul(V::floats(all->sums[g] + h), V::set(old));
        V::store(all->sums[g] + h, V::fma(V::floats(later.sums[g] + h), V::set(fresh), kept));
      }
      all->total[g] = all->total[g] * old + later.total[g] * fresh;
      all->top[g] = top;
    }
  }
};

}  // namespace gemmule
