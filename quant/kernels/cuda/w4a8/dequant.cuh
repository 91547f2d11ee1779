// From 4-bit codes to the E4M3 bytes of wgmma's A fragment, in registers (layout.h has the bits).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "quant/kernels/cuda/w4a8/layout.h"

namespace nibble::w4a8 {

// Entries of the table of fold tables; k = 12..15 never occur (QuantizedMatrix::Validate).
inline constexpr int kFoldTables = 16;

// The fold tables of one format by k, to be copied to shared memory: 16 entries of 8 bytes lie in
// 32 banks, so that any mixture of k is one conflict-free load.
struct FoldTables {
  FoldTable by_k[kFoldTables];
};
constexpr FoldTables MakeFoldTables(Format format) {
  FoldTables tables = {};
  for (int k = 0; k <= kMaxExponentOffset; ++k) tables.by_k[k] = MakeFoldTable(format, k);
  return tables;
}

// Bytes of low:high (numbers 0..7) by the four low nibbles of `selector`, which must be below 8:
// __byte_perm would spend an instruction on masking them.
__device__ __forceinline__ uint32_t SelectBytes(uint2 table, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(table.x), "r"(table.y), "r"(selector));
  return bytes;
}

// Eight codes of one row and k-step: `lower` the four of columns 0..15 of the step, `upper` those
// of 16..31. Seven instructions: mask, shift, 2 PRMT, AND-OR, shift, AND-OR.
__device__ __forceinline__ void ExpandWord(uint32_t word, uint2 lower_table, uint2 upper_table,
                                           uint32_t& lower, uint32_t& upper) {
  constexpr uint32_t kSigns = 0x80808080u;
  const uint32_t magnitudes = word & 0x77777777u;
  lower = SelectBytes(lower_table, magnitudes) | (word & kSigns);
  upper = SelectBytes(upper_table, magnitudes >> 16) | ((word << 4) & kSigns);
}

// The A fragments of two k-steps, from a thread's 16 bytes; table[half] belongs to row half.
__device__ __forceinline__ void ExpandPair(uint4 words, const uint2 (&table)[2], uint32_t* a) {
  ExpandWord(words.x, table[0], table[0], a[0], a[2]);
  ExpandWord(words.y, table[1], table[1], a[1], a[3]);
  ExpandWord(words.z, table[0], table[0], a[4], a[6]);
  ExpandWord(words.w, table[1], table[1], a[5], a[7]);
}

}  // namespace nibble::w4a8
