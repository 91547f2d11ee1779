// Gathering embeddings on a GPU. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace nibble {

// A table of learned positions, row p for position p (OPT: its table from row 2 on).
struct PositionTable {
  const __nv_bfloat16* rows = nullptr;  // bf16 [count, width]
  const int32_t* positions = nullptr;   // [tokens]
  int64_t count = 0;
};

// out[t] = bf16(table[ids[t]] + positions.rows[positions.positions[t]]), without the second where
// `positions` is null. table: bf16 [vocab, width]; ids: int32 [tokens]; out: bf16 [tokens, width];
// row-major on the device, aligned to 16 bytes (ids, positions: 4), width a multiple of 8 up to
// 32768, else INVALID_ARGUMENT. An id or a position outside of its table makes the row NaNs.
absl::Status Embed(const __nv_bfloat16* table, int64_t vocab, int64_t width, const int32_t* ids,
                   const PositionTable* positions, int64_t tokens, __nv_bfloat16* out,
                   cudaStream_t stream);

}  // namespace nibble
