// The inner kernels of the CPU path, once per instruction set. Plain data and pointers only: each
// set's source is compiled with its own flags, and no inline function of a shared header may come
// from there.
//
// One sum serves all: over a panel of 16 rows in the lanes of a vector,
//   total += scale * (sum over the group's columns, by fused multiply-add)
// one group after the other. Columns go in rising order, but of each pair the second comes first
// (kFloat: not), since that is what AVX512-BF16's dot product does. So a row's result depends on
// its weights and its token alone: neither on how many tokens or panels stand beside it, nor on the
// instruction set. All sets give equal bits. (That dot product takes subnormal numbers for 0: no
// kBFloat16 value is below 2^-100.)
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int kPanelRows = 16;
// Columns are stored in steps of 8, zeros after the last.
inline constexpr int kColumnStep = 8;

// How a panel's values are stored, by step of 8 columns:
//   kNibbles  64 bytes of 4-bit codes, each a place in a table of 16 floats (NibblePlace)
//   kBFloat16 4 x 16 dwords: columns 0 and 1, then 2 and 3, .. of row r in the low and high half
//             of dword r
//   kFloat    8 x 16 floats
enum class PanelKind : uint8_t { kNibbles, kBFloat16, kFloat };
inline constexpr int kNibbleStepBytes = 64;
inline constexpr int kBFloat16StepBytes = 256;
inline constexpr int kFloatStepBytes = 512;

// At most so many tokens and panels go into one Multiply.
inline constexpr int kMaxTileTokens = 8;
inline constexpr int kMaxTilePanels = 4;

struct TileInputs {
  PanelKind kind = PanelKind::kFloat;
  const float* table = nullptr;        // [16], kNibbles only
  const void* panels[kMaxTilePanels];  // the first `panel_count` of them
  // What will be wanted after each, as many bytes; the panel itself: unknown. Need not exist.
  const void* next[kMaxTilePanels];
  // Of each panel [groups, 16]; null: 1. With exponents [16], times 2^exponents [groups, 16].
  const float* scales[kMaxTilePanels];
  const int8_t* exponents[kMaxTilePanels] = {};
  const float* x = nullptr;  // [columns rounded up to kColumnStep, tokens]
  // Instead of x: two columns in bf16 a dword, the first in its low half. Not for kFloat.
  const uint32_t* pairs = nullptr;  // [half of x's columns, tokens]
  int64_t columns = 0;              // of kFloat any number, else a multiple of kColumnStep
  int64_t group = 0;                // columns of a full group, a multiple of kColumnStep
  int tokens = 0;
  int panel_count = 0;
};

struct NibblePlace {
  int byte = 0;  // of the step's 64
  bool high = false;
};

struct TileKernels {
  // [row][column]: where a step's codes lie.
  NibblePlace places[kPanelRows][kColumnStep];
  // The tokens of a full tile.
  int tile_tokens;
  // Whether `multiply` takes TileInputs::pairs.
  bool takes_pairs;
  // totals[tokens][panel_count][16] += the product.
  void (*multiply)(const TileInputs& inputs, float* totals);
  // scores[count] in place to exp(score - their largest), those from `count` up to a multiple of 16
  // to 0. Returns their sum: by place modulo 16, then these 16 in a fixed tree. count > 0.
  float (*exponentials)(float* scores, int64_t count);
  // gate[count] := silu(gate) * up. `count` any number.
  void (*silu_multiply)(float* gate, const float* up, int64_t count);
};

extern const TileKernels kPortableKernels;
extern const TileKernels kAvx2Kernels;
extern const TileKernels kAvx512Kernels;
extern const TileKernels kAvx512Bf16Kernels;

}  // namespace nibble
