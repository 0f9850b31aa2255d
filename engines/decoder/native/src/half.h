// IEEE half to float for processors without the instruction.
#pragma once

#include <cstdint>
#include <cstring>

namespace gemmule {

inline float half_to_float(const uint8_t* from) {
  const uint32_t bits = from[0] | from[1] << 8;
  const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  uint32_t out;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * (1.0f / 16777216.0f);  // subnormal: fraction * 2^-24
    std::memcpy(&out, &value, 4);
    out |= sign;
  } else if (exponent == 31) {
    out = sign | 0x7f800000 | fraction << 13;
  } else {
    out = sign | (exponent + 112) << 23 | fraction << 13;
  }
  std::memcpy(&value, &out, 4);
  return value;
}

}  // namespace gemmule
