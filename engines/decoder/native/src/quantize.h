// Activations to int8, compiled once for each path so that the compiler may use its vectors.
#pragma once

#include <cmath>
#include <cstdint>

#include "activations.h"

namespace gemmule {

// One row of `inputs` floats (a multiple of 32) to codes, scales and sums. NaN and infinity stay visible: they
// make the scale NaN or infinite, hence the outputs NaN.
static inline void quantize_row(const float* x, int64_t inputs, const Activations& out) {
  int8_t* codes = reinterpret_cast<int8_t*>(out.codes);
  for (int64_t k = 0; k < inputs / kBlock; ++k, x += kBlock, codes += kBlock) {
    float most = 0.0f, probe = 0.0f;
    for (int i = 0; i < kBlock; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    for (int i = 0; i < kBlock; ++i) probe += x[i] * 0.0f;
    const float scale = most / 127.0f + probe;
    const float inverse = most > 0.0f && probe == 0.0f ? 127.0f / most : 0.0f;
    int32_t first = 0, second = 0;
    for (int i = 0; i < kBlock; ++i) {
      // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even.
      const float rounded = (x[i] * inverse + 12582912.0f) - 12582912.0f;
      codes[i] = static_cast<int8_t>(static_cast<int32_t>(probe == 0.0f ? rounded : 0.0f));
    }
    for (int i = 0; i < 16; ++i) first += codes[i];
    for (int i = 16; i < 32; ++i) second += codes[i];
    out.scales[k] = scale;
    out.sums[2 * k] = first;
    out.sums[2 * k + 1] = second;
    out.offsets[k] = scale * static_cast<float>(first + second);
  }
}

}  // namespace gemmule
