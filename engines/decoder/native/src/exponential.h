// exp for arguments of at most 0, to about 2e-7 relative: 2^n times a polynomial, lanes independent.
//
// Included by each path_*.cc inside its target, so that the compiler may use its vectors.
#pragma once

#include <cstdint>
#include <cstring>

namespace gemmule {

static inline float exp_below_zero(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to the nearest integer
  const float whole = shifted - 12582912.0f;
  const float rest = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

}  // namespace gemmule
