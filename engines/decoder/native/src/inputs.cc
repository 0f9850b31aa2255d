#include "inputs.h"

#include <algorithm>
#include <cstring>

namespace gemmule {

Inputs::Inputs(const Path& path, Arena& arena, int64_t capacity, int64_t width, bool codes, bool floats)
    : path_(path), width_(width), codes_(codes), floats_(floats), rows_(arena.take<Activations>(capacity)) {
  const int64_t blocks = blocks_of(width);
  int32_t* code = codes ? arena.take<int32_t>(capacity * blocks * 8) : nullptr;
  int32_t* sums = codes ? arena.take<int32_t>(capacity * blocks * 2) : nullptr;
  float* scales = codes ? arena.take<float>(capacity * blocks * 2) : nullptr;
  if (floats && width % kBlock) padded_ = arena.take<float>(capacity * blocks * kBlock);
  for (int64_t m = 0; m < capacity; ++m) {
    rows_[m] = {};
    if (codes)
      rows_[m] = {code + m * blocks * 8, scales + m * blocks * 2, sums + m * blocks * 2,
                  scales + m * blocks * 2 + blocks, nullptr};
  }
}

void Inputs::set(int64_t m, const float* x) {
  if (codes_) path_.quantize(x, width_, rows_[m]);
  if (!floats_) return;
  rows_[m].values = x;
  if (!padded_) return;
  const int64_t whole = round_up(width_, kBlock);  // bfloat16 weights are padded to whole blocks
  float* copy = padded_ + m * whole;
  std::memcpy(copy, x, static_cast<size_t>(width_) * sizeof(float));
  std::fill(copy + width_, copy + whole, 0.0f);
  rows_[m].values = copy;
}

}  // namespace gemmule
