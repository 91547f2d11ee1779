// Compiled for AVX2 and FMA.
#include <immintrin.h>

#include "quant/kernels/cpu/tile_kernel.h"

namespace nibble {
namespace {

struct Avx2 {
  struct Vec {
    __m256 low;   // lanes 0-7
    __m256 high;  // lanes 8-15
  };
  // The bf16 bits of the table's 16 values, by byte, in both halves.
  struct Table {
    __m256i low;
    __m256i high;
  };
  struct NibbleStep {
    __m256i halves[2];  // columns 0 to 3, 4 to 7
  };
  static constexpr bool kTakesPairs = false;
  static constexpr int kMostPanels = 2;
  static constexpr int kTileTokens = 6;
  static constexpr int kAccumulators = 6;

  static Vec Zero() { return Set(0); }
  static Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void Store(float* p, Vec v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static Vec Fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Vec Add(Vec a, Vec b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Vec Subtract(Vec a, Vec b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static Vec Multiply(Vec a, Vec b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Vec Divide(Vec a, Vec b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  // Of a NaN and a number the instructions give the second.
  static Vec AtLeast(Vec low, Vec v) {
    return {_mm256_max_ps(low.low, v.low), _mm256_max_ps(low.high, v.high)};
  }
  static Vec AtMost(Vec high, Vec v) {
    return {_mm256_min_ps(high.low, v.low), _mm256_min_ps(high.high, v.high)};
  }
  static __m256 PowerOfTwo(__m256 t) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)));
  }
  static Vec PowerOfTwo(Vec t) { return {PowerOfTwo(t.low), PowerOfTwo(t.high)}; }
  static __m256 EightPowersOfTwo(const int8_t* p) {
    const __m256i exponents =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i biased = _mm256_add_epi32(exponents, _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static Vec PowersOfTwo(const int8_t* p) { return {EightPowersOfTwo(p), EightPowersOfTwo(p + 8)}; }

  // So that after a look-up of both bytes and an interleave within the 128-bit halves, dword r of
  // the low result holds columns 0 and 1 (or 2 and 3) of row r, of the high result those of row
  // 8 + r.
  static constexpr NibblePlace Place(int row, int column) {
    const int half = row % 8 / 4;
    return {32 * (column / 4) + 16 * half + row / 8 * 8 + 2 * (row % 4) + column % 2,
            column % 4 >= 2};
  }
  static Table NibbleTable(const float* table) {
    alignas(16) uint8_t bytes[2][16];
    for (int i = 0; i < 16; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, table + i, sizeof(bits));
      bytes[0][i] = static_cast<uint8_t>(bits >> 16);
      bytes[1][i] = static_cast<uint8_t>(bits >> 24);
    }
    const auto twice = [](const uint8_t* p) {
      return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    };
    return {twice(bytes[0]), twice(bytes[1])};
  }
  static __m256 EvenWords(__m256i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  static __m256 OddWords(__m256i words) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(words, mask));
  }
  static NibbleStep LoadNibbles(const uint8_t* p) {
    const auto* halves = reinterpret_cast<const __m256i*>(p);
    return {{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
  }
  static Vec NibbleColumn(const Table& table, const NibbleStep& step, int column) {
    const __m256i half = step.halves[column / 4];
    const __m256i codes =
        _mm256_and_si256(column % 4 < 2 ? half : _mm256_srli_epi16(half, 4), _mm256_set1_epi8(15));
    const __m256i low = _mm256_shuffle_epi8(table.low, codes);
    const __m256i high = _mm256_shuffle_epi8(table.high, codes);
    return Words(_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high), column % 2 == 1);
  }
  static Vec BFloat16Column(const uint8_t* p, bool odd) {
    const auto* words = reinterpret_cast<const __m256i*>(p);
    return Words(_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1), odd);
  }
  // The bf16 numbers in the low or high half of each dword.
  static Vec Words(__m256i first, __m256i second, bool odd) {
    return odd ? Vec{OddWords(first), OddWords(second)} : Vec{EvenWords(first), EvenWords(second)};
  }
};

}  // namespace

constinit const TileKernels kAvx2Kernels = MakeTileKernels<Avx2>();

}  // namespace nibble
