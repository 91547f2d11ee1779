// What quantizes the rows of a matrix on a GPU: their scales, round-to-nearest, and GPTQ's inner
// loop over one block of columns. A warp works on a row; the arithmetic is the CPU's to the bit
// (formats' ComputeRowScales and QuantizeWeight, solver.h's SolveBlock). Free of LibTorch;
// launchers queue on `stream` and don't wait. Private to gptq/.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/formats/formats.h"

namespace nibble {

// The RowScales of every row, on the device. Arrays that the spec does not use are null.
struct DeviceRowScales {
  float* scale = nullptr;      // [rows, groups]
  uint8_t* zero = nullptr;     // [rows, groups], asymmetric
  float* row_scale = nullptr;  // [rows], M2
  int8_t* exponent = nullptr;  // [rows, groups], M1: log2 S; M2: k
  int32_t* clamped = nullptr;  // [rows]
};

// A matrix [rows, cols] and how it is stored; `spec` is valid.
struct DeviceShape {
  WeightSpec spec;
  int64_t rows = 0;
  int64_t cols = 0;
};

// scales := ComputeRowScales of every row of weights [rows, cols], which are finite.
absl::Status ComputeScales(const DeviceShape& shape, const float* weights,
                           const DeviceRowScales& scales, cudaStream_t stream);

// codes[rows, cols], one a byte: QuantizeWeight of every weight under its group's scale.
absl::Status QuantizeRows(const DeviceShape& shape, const float* weights,
                          const DeviceRowScales& scales, uint8_t* codes, cudaStream_t stream);

inline constexpr int64_t kMostBlockColumns = 128;

// Columns begin .. end - 1 of the solve, at most kMostBlockColumns.
struct DeviceBlock {
  int64_t begin = 0;
  int64_t end = 0;
  bool updates_scales = false;     // natural order: scales from the updated weights
  const int64_t* order = nullptr;  // [cols] original column of each column of the solve
  const float* hinv = nullptr;     // [cols, cols] upper factor
};

// SolveBlock for every row.
//   weights [rows, cols] in the order of the solve; the block's columns receive the block's updates
//   codes   [rows, cols] in the original order
//   errors  [rows, end - begin]
absl::Status SolveBlocks(const DeviceShape& shape, const DeviceBlock& block, float* weights,
                         const DeviceRowScales& scales, uint8_t* codes, float* errors,
                         cudaStream_t stream);

}  // namespace nibble
