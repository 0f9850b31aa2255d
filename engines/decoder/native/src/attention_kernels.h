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

  static float sum(const float* values, int64_t count) {
    F lanes = V::set(0.0f);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) lanes = V::add(lanes, V::floats(values + i));
    float rest = 0.0f;
    for (; i < count; ++i) rest += values[i];
    return V::total(lanes) + rest;
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
    float highest = scores[0];
    for (int64_t i = 1; i < count; ++i) highest = scores[i] > highest ? scores[i] : highest;
    for (int64_t i = 0; i < count; ++i) scores[i] = exp_below_zero(scores[i] - highest);
    *top = highest;
    *total = sum(scores, count);
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
  static void one_token(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count,
                        const Partial& out) {
    float scores[G * kSpan];
    float* sums[G];
    score<G>(task, rows.base, rows.query, first, count, scores);
    for (int g = 0; g < G; ++g) {
      soften(task, count, scores + g * kSpan, out.top + g, out.total + g);
      sums[g] = out.sums + g * task.size;
    }
    mix<G>(task, rows.base, scores, first, count, sums);
  }

  static int tokens(const AttentionTask&, int) { return 1; }

  // One token: all its heads see the whole span that was asked for.
  static void span(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count, const Partial& out) {
    switch (rows.heads) {
      case 1: return one_token<1>(task, rows, first, count, out);
      case 2: return one_token<2>(task, rows, first, count, out);
      case 3: return one_token<3>(task, rows, first, count, out);
      case 4: return one_token<4>(task, rows, first, count, out);
      case 5: return one_token<5>(task, rows, first, count, out);
      case 6: return one_token<6>(task, rows, first, count, out);
      case 7: return one_token<7>(task, rows, first, count, out);
      default: return one_token<8>(task, rows, first, count, out);
    }
  }

  static void join(const AttentionTask& task, int count, const Partial& later, const Partial& all) {
    for (int r = 0; r < count; ++r) {
      if (later.total[r] == 0.0f) continue;
      const bool nothing = all.total[r] == 0.0f;
      const float top = nothing || later.top[r] > all.top[r] ? later.top[r] : all.top[r];
      const float old = nothing ? 0.0f : exp_below_zero(all.top[r] - top), fresh = exp_below_zero(later.top[r] - top);
      float* to = all.sums + r * task.size;
      for (int64_t h = 0; h < task.size; h += 16) {
        const F more = V::mul(V::floats(later.sums + r * task.size + h), V::set(fresh));
        V::store(to + h, nothing ? more : V::fma(V::floats(to + h), V::set(old), more));
      }
      all.total[r] = (nothing ? 0.0f : all.total[r] * old) + later.total[r] * fresh;
      all.top[r] = top;
    }
  }

  static constexpr AttentionPath path() { return {tokens, span, join}; }
};

}  // namespace gemmule
