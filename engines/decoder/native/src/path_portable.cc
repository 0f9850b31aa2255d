// Plain C++ for any processor; also the reference that the other paths are compared with.
#include <cmath>
#include <cstring>

#include "attention_kernels.h"
#include "glue_kernels.h"
#include "half.h"
#include "kernels.h"
#include "quantize.h"

namespace gemmule {
namespace {

struct Portable {
  static constexpr int kTile = 2;
  struct F { float v[16]; };
  struct I { int32_t v[16]; };
  struct U { uint8_t v[64]; };
  struct X { int8_t v[4]; };

  static F set(float value) {
    F out;
    for (float& lane : out.v) lane = value;
    return out;
  }
  static F fma(const F& a, const F& b, const F& c) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = a.v[i] * b.v[i] + c.v[i];
    return out;
  }
  static F fnma(const F& a, const F& b, const F& c) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = c.v[i] - a.v[i] * b.v[i];
    return out;
  }
  static F mul(const F& a, const F& b) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = a.v[i] * b.v[i];
    return out;
  }
  static F add(const F& a, const F& b) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = a.v[i] + b.v[i];
    return out;
  }
  static F to_float(const I& a) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(a.v[i]);
    return out;
  }
  static F half(const uint8_t* from) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = half_to_float(from + 2 * i);
    return out;
  }
  static F from_u8(const uint8_t* from) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = from[i];
    return out;
  }
  static F from_s8(const uint8_t* from) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<int8_t>(from[i]);
    return out;
  }
  static F floats(const float* from) {
    F out;
    std::memcpy(out.v, from, sizeof out.v);
    return out;
  }
  static F bf16s(const uint16_t* from) {
    F out;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(out.v + i, &bits, 4);
    }
    return out;
  }
  static float total(const F& a) {
    float sum = 0.0f;
    for (float lane : a.v) sum += lane;
    return sum;
  }
  static void store(float* to, const F& a) { std::memcpy(to, a.v, sizeof a.v); }
  static I start(int32_t value) {
    I out;
    for (int32_t& lane : out.v) lane = value;
    return out;
  }
  static I start_wide(int32_t sum) { return start(-128 * sum); }
  static U load(const uint8_t* from) {
    U out;
    std::memcpy(out.v, from, 64);
    return out;
  }
  static U low(const U& a) {
    U out;
    for (int i = 0; i < 64; ++i) out.v[i] = a.v[i] & 15;
    return out;
  }
  static U high(const U& a) {
    U out;
    for (int i = 0; i < 64; ++i) out.v[i] = a.v[i] >> 4;
    return out;
  }
  static U join(const U& low, const U& highs, int j) {
    U out;
    for (int i = 0; i < 64; ++i) out.v[i] = low.v[i] | (((highs.v[i] >> (2 * j)) & 3) << 4);
    return out;
  }
  static X input(const int32_t* from) {
    X out;
    std::memcpy(out.v, from, 4);
    return out;
  }
  static I dot(const I& sum, const U& w, const X& x) {
    I out = sum;
    for (int i = 0; i < 16; ++i)
      out.v[i] += w.v[4 * i] * x.v[0] + w.v[4 * i + 1] * x.v[1] + w.v[4 * i + 2] * x.v[2] + w.v[4 * i + 3] * x.v[3];
    return out;
  }
  static I dot_wide(const I& sum, const U& w, const X& x) { return dot(sum, w, x); }
  static F bf16_even(const U& w) { return bf16(w, 0); }
  static F bf16_odd(const U& w) { return bf16(w, 1); }
  static F bf16(const U& w, int which) {
    F out;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = (w.v[4 * i + 2 * which] | w.v[4 * i + 2 * which + 1] << 8) << 16;
      std::memcpy(out.v + i, &bits, 4);
    }
    return out;
  }
};

bool always() { return true; }
void run(const Task& task, int64_t begin, int64_t end) { run_groups<Portable>(task, begin, end); }
void quantize(const float* x, int64_t inputs, const Activations& out) { quantize_row(x, inputs, out); }

}  // namespace

const Path kPortablePath = {"portable", always,
                            run, quantize, Attention<Portable>::path(), Glue<Portable>::path()};

}  // namespace gemmule
