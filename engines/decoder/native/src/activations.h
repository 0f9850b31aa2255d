// Activations as the kernels read them, and the task that one call makes.
//
// The quantised formats take int8 codes with one scale for 32 inputs (amax / 127, ties to even), as llama.cpp's
// Q8_0 does; bf16 takes the floats themselves.
#pragma once

#include <cstdint>

#include "attention.h"
#include "glue.h"
#include "layout.h"

namespace gemmule {

// One row: `codes` hold four int8 each, `sums` one sum for 16 inputs, `offsets` scale times sum for 32.
struct Activations {
  int32_t* codes;
  float* scales;
  int32_t* sums;
  float* offsets;
  const float* values;
};

struct Task {
  Format format;
  const uint8_t* packed;
  const Activations* x;
  int64_t count;
  int64_t inputs;
  int64_t outputs;
  float* out;
  int64_t stride;  // floats between two rows of `out`
};

// What one instruction-set path offers.
struct Path {
  const char* name;
  bool (*supported)();
  void (*run)(const Task& task, int64_t begin, int64_t end);
  void (*quantize)(const float* x, int64_t inputs, const Activations& out);
  AttentionPath attention;
  GluePath glue;
};

extern const Path kAvx512Bf16Path, kAvx512Path, kAvx2Path, kNeonPath, kPortablePath;

// The path of this name (any if null) that comes first and that this processor supports, or null.
const Path* find_path(const char* name);

// The fastest path that this processor supports, or the one that was chosen.
const Path& best_path();

// Chooses the path of this name (the fastest if null) for every call after this one; false where there is none.
bool use_path(const char* name);

}  // namespace gemmule
