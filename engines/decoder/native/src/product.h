// Products of prepared activations with packed weights, split among threads.
#pragma once

#include <cstdint>

#include "activations.h"
#include "inputs.h"

namespace gemmule {

// A packed matrix; no bytes where there is none.
struct Matrix {
  Format format = kQ8;
  const uint8_t* packed = nullptr;
  int64_t outputs = 0;
};

// Rows [0, count) of `inputs` times the matrix -> out, whose rows are `stride` floats apart.
void multiply(const Path& path, const Matrix& matrix, const Inputs& inputs, int64_t count, float* out, int64_t stride);

// x [count, inputs] times a packed matrix -> out [count, outputs].
void product(const Path& path, Format format, const float* x, int64_t count, int64_t inputs, const uint8_t* packed,
             int64_t outputs, float* out);

}  // namespace gemmule
