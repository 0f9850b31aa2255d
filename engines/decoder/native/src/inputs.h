// Rows of activations as products take them, made once for all products of the same input.
#pragma once

#include <cstdint>

#include "activations.h"
#include "arena.h"

namespace gemmule {

class Inputs {
 public:
  // Room for `capacity` rows of `width` floats: as codes for quantised weights, as floats for bfloat16 ones.
  Inputs(const Path& path, Arena& arena, int64_t capacity, int64_t width, bool codes, bool floats);

  // Sets row `m`. The floats must stay where they are while products use them.
  void set(int64_t m, const float* x);

  const Activations* rows() const { return rows_; }
  int64_t width() const { return width_; }

 private:
  const Path& path_;
  int64_t width_;
  bool codes_, floats_;
  float* padded_ = nullptr;
  Activations* rows_;
};

}  // namespace gemmule
