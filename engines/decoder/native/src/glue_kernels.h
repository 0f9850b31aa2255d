// Norms, rotations and activations, written once over a vector type `V`; included by each path_*.cc like kernels.h.
#pragma once

#include <cmath>

#include "exponential.h"
#include "glue.h"

namespace gemmule {

template <class V>
struct Glue {
  using F = typename V::F;

  static float square_sum(const float* x, int64_t size) {
    F sum[4];
    for (F& lane : sum) lane = V::set(0.0f);
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
      for (int j = 0; j < 4; ++j) {
        const F value = V::floats(x + i + 16 * j);
        sum[j] = V::fma(value, value, sum[j]);
      }
    }
    for (; i + 16 <= size; i += 16) sum[0] = V::fma(V::floats(x + i), V::floats(x + i), sum[0]);
    float rest = 0.0f;
    for (; i < size; ++i) rest += x[i] * x[i];
    return V::total(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3]))) + rest;
  }

  static void norm(const float* x, const float* scale, int64_t size, float epsilon, float* out) {
    const float inverse = 1.0f / std::sqrt(square_sum(x, size) / static_cast<float>(size) + epsilon);
    if (scale) {
      for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inverse * scale[i];
    } else {
      for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inverse;
    }
  }

  static void rotate(float* head, const float* cosine, const float* sine, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
      const float first = head[i], second = head[i + half];
      head[i] = first * cosine[i] - second * sine[i];
      head[i + half] = second * cosine[i] + first * sine[i];
    }
  }

  // 1 / (1 + exp(-x)); NaN stays NaN.
  static float sigmoid(float x) {
    const float size = x < 0.0f ? x : -x, e = exp_below_zero(size);
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
  }

  static void gate(Activation kind, const float* gate, const float* up, int64_t size, float* out) {
    if (kind == kSilu) {
      for (int64_t i = 0; i < size; ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
    } else {  // x / 2 * (1 + tanh(u)) is x * sigmoid(2 u)
      for (int64_t i = 0; i < size; ++i) {
        const float x = gate[i], u = 0.797884561f * (x + 0.044715f * x * x * x);
        out[i] = x * sigmoid(2.0f * u) * up[i];
      }
    }
  }

  static void add(const float* x, const float* y, int64_t size, float* out) {
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] + y[i];
  }

  static constexpr GluePath path() { return {norm, rotate, gate, add}; }
};

}  // namespace gemmule
