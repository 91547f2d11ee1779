// AVX-512 F, BW, DQ and VL, for the sources compiled with them.
#pragma once

#include <immintrin.h>

#include "quant/kernels/cpu/tile_kernel.h"

namespace nibble {
namespace {

struct Avx512 {
  using Vec = __m512;
  using Table = __m512;
  using NibbleStep = __m512i;
  static constexpr bool kTakesPairs = false;
  static constexpr int kMostPanels = 4;
  static constexpr int kTileTokens = 8;
  static constexpr int kAccumulators = 24;

  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Set(float x) { return _mm512_set1_ps(x); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec Subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec Multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec Divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  // Of a NaN and a number the instructions give the second.
  static Vec AtLeast(Vec low, Vec v) { return _mm512_max_ps(low, v); }
  static Vec AtMost(Vec high, Vec v) { return _mm512_min_ps(high, v); }
  static Vec PowerOfTwo(Vec t) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)));
  }
  static Vec PowersOfTwo(const int8_t* p) {
    const __m512i exponents =
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i biased = _mm512_add_epi32(exponents, _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }

  // Dword `row` holds that row's columns, the even ones in its low half.
  static constexpr NibblePlace Place(int row, int column) {
    return {4 * row + column % 2 * 2 + column / 4, column / 2 % 2 == 1};
  }
  static Table NibbleTable(const float* table) { return Load(table); }
  static NibbleStep LoadNibbles(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // The permutation reads only the low 4 bits of an index.
  static Vec NibbleColumn(Table table, NibbleStep step, int column) {
    const int shift = 4 * (column / 2) + 16 * (column % 2);
    if (shift > 0) step = _mm512_srli_epi32(step, static_cast<unsigned>(shift));
    return _mm512_permutexvar_ps(step, table);
  }
  static Vec BFloat16Column(const uint8_t* p, bool odd) {
    const __m512i both = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(
        odd ? _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))
            : _mm512_slli_epi32(both, 16));
  }
};

}  // namespace
}  // namespace nibble
