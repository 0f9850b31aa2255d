// What lies between the products of a layer, for one row or head at a time.
#pragma once

#include <cstdint>

namespace gemmule {

enum Activation : int32_t { kGeluTanh = 0, kSilu = 1, kActivations = 2 };

// The instruction-set specific parts of one path.
struct GluePath {
  // out = x / sqrt(mean(x^2) + epsilon) * scale, over `size` values; scale may be null; out may be x.
  void (*norm)(const float* x, const float* scale, int64_t size, float epsilon, float* out);
  // Turns the pairs (i, i + half) of a head in place.
  void (*rotate)(float* head, const float* cosine, const float* sine, int64_t half);
  // out = activation(gate) * up; out may be gate.
  void (*gate)(Activation kind, const float* gate, const float* up, int64_t size, float* out);
  // out = x + y; out may be x or y.
  void (*add)(const float* x, const float* y, int64_t size, float* out);
};

}  // namespace gemmule
