// The vector type of the paths with AVX-512; included inside their targets.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace gemmule {
namespace {

struct Avx512 {
  static constexpr int kTile = 8;
  using F = __m512;
  using I = __m512i;
  using U = __m512i;
  using X = __m512i;

  static F set(float value) { return _mm512_set1_ps(value); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static F half(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static __m128i bytes(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static F from_u8(const uint8_t* from) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(from))); }
  static F from_s8(const uint8_t* from) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(from))); }
  static F floats(const float* from) { return _mm512_loadu_ps(from); }
  static F bf16s(const uint16_t* from) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static float total(F a) { return _mm512_reduce_add_ps(a); }
  static void store(float* to, F a) { _mm512_storeu_ps(to, a); }
  static I start(int32_t value) { return _mm512_set1_epi32(value); }
  static I start_wide(int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  static U load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static U low(U a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static U high(U a) { return low(_mm512_srli_epi16(a, 4)); }
  static U join(U low, U highs, int j) {
    const U shifted = j < 2 ? _mm512_slli_epi16(highs, 4 - 2 * j) : _mm512_srli_epi16(highs, 2 * j - 4);
    return _mm512_or_si512(low, _mm512_and_si512(shifted, _mm512_set1_epi8(48)));
  }
  static X input(const int32_t* from) { return _mm512_set1_epi32(*from); }
  static I dot(I sum, U w, X x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static I dot_wide(I sum, U w, X x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static F bf16_even(U w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
  static F bf16_odd(U w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
  }
};

}  // namespace
}  // namespace gemmule
