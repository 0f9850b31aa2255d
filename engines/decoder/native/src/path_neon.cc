// NEON with the dot-product extension: Apple silicon, Arm from Cortex-A76 and Neoverse N1.
#include "target.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cmath>
#include <cstring>

#include "activations.h"  // shared inline functions stay on the base target

#if defined(__clang__)
GEMMULE_TARGET("dotprod")
#else
GEMMULE_TARGET("arch=armv8.2-a+dotprod")
#endif
#include "attention_kernels.h"
#include "glue_kernels.h"
#include "kernels.h"
#include "quantize.h"

namespace gemmule {
namespace {

struct Neon {
  static constexpr int kTile = 2;
  struct F { float32x4_t v[4]; };
  struct I { int32x4_t v[4]; };
  struct U { uint8x16_t v[4]; };
  using X = int8x16_t;

  template <class Make>
  static F each(Make make) {
    return {{make(0), make(1), make(2), make(3)}};
  }
  static F set(float value) {
    return each([&](int) { return vdupq_n_f32(value); });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  static F fnma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return vfmsq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  static F add(const F& a, const F& b) {
    return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  static F to_float(const I& a) {
    return each([&](int i) { return vcvtq_f32_s32(a.v[i]); });
  }
  static F half(const uint8_t* from) {
    return each([&](int i) {
      return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from + 8 * i)));
    });
  }
  static F from_u8(const uint8_t* from) {
    float whole[16];
    for (int i = 0; i < 16; ++i) whole[i] = from[i];
    return each([&](int i) { return vld1q_f32(whole + 4 * i); });
  }
  static F from_s8(const uint8_t* from) {
    float whole[16];
    for (int i = 0; i < 16; ++i) whole[i] = static_cast<int8_t>(from[i]);
    return each([&](int i) { return vld1q_f32(whole + 4 * i); });
  }
  static F floats(const float* from) {
    return each([&](int i) { return vld1q_f32(from + 4 * i); });
  }
  static F bf16s(const uint16_t* from) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16)); });
  }
  static float total(const F& a) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3])));
  }
  static void store(float* to, const F& a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.v[i]);
  }
  static I start(int32_t value) {
    const int32x4_t v = vdupq_n_s32(value);
    return {{v, v, v, v}};
  }
  static I start_wide(int32_t) { return start(0); }
  static U load(const uint8_t* from) {
    return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
  }
  static U low(const U& a) {
    const uint8x16_t mask = vdupq_n_u8(15);
    return {{vandq_u8(a.v[0], mask), vandq_u8(a.v[1], mask), vandq_u8(a.v[2], mask), vandq_u8(a.v[3], mask)}};
  }
  static U high(const U& a) {
    return {{vshrq_n_u8(a.v[0], 4), vshrq_n_u8(a.v[1], 4), vshrq_n_u8(a.v[2], 4), vshrq_n_u8(a.v[3], 4)}};
  }
  static U join(const U& low, const U& highs, int j) {
    const int8x16_t shift = vdupq_n_s8(static_cast<int8_t>(4 - 2 * j));  // negative counts shift right
    U out;
    for (int i = 0; i < 4; ++i)
      out.v[i] = vorrq_u8(low.v[i], vandq_u8(vshlq_u8(highs.v[i], shift), vdupq_n_u8(48)));
    return out;
  }
  static X input(const int32_t* from) { return vreinterpretq_s8_s32(vdupq_n_s32(*from)); }
  static I dot(const I& sum, const U& w, const X& x) {
    I out;
    for (int i = 0; i < 4; ++i) out.v[i] = vdotq_s32(sum.v[i], vreinterpretq_s8_u8(w.v[i]), x);
    return out;
  }
  static I dot_wide(const I& sum, const U& w, const X& x) {
    I out;
    for (int i = 0; i < 4; ++i)
      out.v[i] = vdotq_s32(sum.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(128))), x);
    return out;
  }
  static F bf16_even(const U& w) {
    return each([&](int i) {
      return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(w.v[i]), 16));
    });
  }
  static F bf16_odd(const U& w) {
    return each([&](int i) {
      return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_u32(0xffff0000u)));
    });
  }
};

bool supported() {
#if defined(__APPLE__)
  return true;
#elif defined(__linux__) && defined(HWCAP_ASIMDDP)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return false;
#endif
}
void run(const Task& task, int64_t begin, int64_t end) { run_groups<Neon>(task, begin, end); }
void quantize(const float* x, int64_t inputs, const Activations& out) { quantize_row(x, inputs, out); }

}  // namespace

const Path kNeonPath = {"neon-dotprod", supported,
                        run, quantize, Attention<Neon>::path(), Glue<Neon>::path()};

}  // namespace gemmule
GEMMULE_TARGET_END
#endif
