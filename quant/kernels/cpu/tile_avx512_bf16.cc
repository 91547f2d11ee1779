// Compiled for AVX-512 F, BW, DQ, VL and BF16.
#include "quant/kernels/cpu/tile_avx512.h"

namespace nibble {
namespace {

struct Avx512Bf16 : Avx512 {
  using Pair = __m512i;  // 2 x 16 bf16
  static constexpr bool kTakesPairs = true;

  static Pair SetPair(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Pair LoadPair(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Vec FmaPair(Pair a, Pair b, Vec c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // Twice, since the permutation of words reads 5 bits of an index, one more than a code has.
  static Pair PairTable(const float* table) {
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(Load(table)), 16);
    return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(high));
  }
  static Pair NibblePair(Pair table, NibbleStep step, int pair) {
    if (pair > 0) step = _mm512_srli_epi16(step, static_cast<unsigned>(4 * pair));
    return _mm512_permutexvar_epi16(step, table);
  }
};

}  // namespace

constinit const TileKernels kAvx512Bf16Kernels = MakeTileKernels<Avx512Bf16>();

}  // namespace nibble
