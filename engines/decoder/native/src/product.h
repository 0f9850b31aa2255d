// One product: quantise the activations, split the groups among threads.
#pragma once

#include <cstdint>

#include "activations.h"

namespace gemmule {

// x [count, inputs] times a packed matrix -> out [count, outputs].
void product(const Path& path, Format format, const float* x, int64_t count, int64_t inputs, const uint8_t* packed,
             int64_t outputs, float* out);

}  // namespace gemmule
