// What one launch of the decode kernel is given, and which kernel it is.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/plan.h"

namespace nibble::w4a8 {

// Where LoRC blocks leave t = x B^T for the others. The counters are zero between launches: the
// last to count resets them.
struct LorcWorkspace {
  uint32_t* done = nullptr;    // LoRC tiles whose t is complete
  uint32_t* seen = nullptr;    // row blocks that have read t
  uint32_t* pieces = nullptr;  // [LoRC tiles] pieces whose sums are complete
  float* sums = nullptr;       // [LoRC tile][piece][64 rows of hi, then lo][token tile]
  __nv_bfloat16* t = nullptr;  // [ranks / 16][token tile][16]
};

struct DecodeArguments {
  CUtensorMap x;                    // boxes of one slice x token tile
  const uint8_t* x_rows = nullptr;  // the same, plainly
  int64_t x_pitch = 0;
  int cols = 0;
  PreparedLinear weights;
  DecodePlan plan;
  DecodeShared shared;
  int slice_count = 0;
  int slice_bytes = 0;
  int part_slices = 0;   // slices of one part of K
  int piece_slices = 0;  // of one LoRC piece
  int tokens = 0;
  const float* x_scale = nullptr;
  __nv_bfloat16* y = nullptr;
  float* y_f32 = nullptr;
  LorcWorkspace lorc;
};

using DecodeKernelPointer = void (*)(DecodeArguments);

// Null for a combination that no plan makes. `groups`: GroupsPerSlice.
DecodeKernelPointer FoldedDecodeKernel(int groups, int token_tile);
DecodeKernelPointer ScaledDecodeKernel(Kind kind, int groups, int token_tile);

}  // namespace nibble::w4a8
