// AVX2 with FMA and half conversion: Intel from Haswell, AMD from Zen.
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "activations.h"  // shared inline functions stay on the base target

GEMMULE_TARGET("avx2,fma,f16c")
#include "attention_kernels.h"
#include "glue_kernels.h"
#include "kernels.h"
#include "quantize.h"

namespace gemmule {
namespace {

struct Avx2 {
  static constexpr int kTile = 2;
  struct F { __m256 a, b; };
  struct I { __m256i a, b; };
  struct U { __m256i a, b; };
  struct X { __m256i even, odd; };  // inputs 0 and 2, 1 and 3 of four, as int16

  static F set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static __m128i bytes(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static F half(const uint8_t* from) { return {_mm256_cvtph_ps(bytes(from)), _mm256_cvtph_ps(bytes(from + 16))}; }
  static F from_u8(const uint8_t* from) {
    const __m128i v = bytes(from);
    return to_float({_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))});
  }
  static F from_s8(const uint8_t* from) {
    const __m128i v = bytes(from);
    return to_float({_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))});
  }
  static F floats(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static __m256 widen(__m128i raw) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  static F bf16s(const uint16_t* from) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(from);
    return {widen(bytes(at)), widen(bytes(at + 16))};
  }
  static float total(F x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static void store(float* to, F x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
  }
  static I start(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static I start_wide(int32_t sum) { return start(-128 * sum); }
  static U load(const uint8_t* from) {
    const __m256i* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static U low(U x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  }
  static U high(U x) { return low({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
  static __m256i field(__m256i x, int j) {
    const __m256i shifted = j < 2 ? _mm256_slli_epi16(x, 4 - 2 * j) : _mm256_srli_epi16(x, 2 * j - 4);
    return _mm256_and_si256(shifted, _mm256_set1_epi8(48));
  }
  static U join(U low, U highs, int j) {
    return {_mm256_or_si256(low.a, field(highs.a, j)), _mm256_or_si256(low.b, field(highs.b, j))};
  }
  static X input(const int32_t* from) {
    const __m256i x = _mm256_set1_epi32(*from);
    return {_mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), _mm256_srai_epi16(x, 8)};
  }
  // Codes widened to 16 bits: multiplying bytes directly would saturate for 8-bit codes.
  static __m256i dot(__m256i sum, __m256i w, X x) {
    const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(w, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, x.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, x.odd));
  }
  static I dot(I sum, U w, X x) { return {dot(sum.a, w.a, x), dot(sum.b, w.b, x)}; }
  static I dot_wide(I sum, U w, X x) { return dot(sum, w, x); }
  static F bf16_even(U w) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.b, 16))};
  }
  static F bf16_odd(U w) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(w.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(w.b, mask))};
  }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
void run(const Task& task, int64_t begin, int64_t end) { run_groups<Avx2>(task, begin, end); }
void quantize(const float* x, int64_t inputs, const Activations& out) { quantize_row(x, inputs, out); }

}  // namespace

const Path kAvx2Path = {"avx2", supported,
                        run, quantize, Attention<Avx2>::path(), Glue<Avx2>::path()};

}  // namespace gemmule
GEMMULE_TARGET_END
#endif
