// Rotary embedding of queries and keys, and appending keys and values to the paged cache, in one
// kernel. Free of LibTorch; launchers queue on `stream` and don't wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "quant/kernels/cuda/paged_kv.h"

namespace nibble {

// The tokens of one step, arrays on the device. Positions and slots are copied there by the host,
// not written by a kernel: they are read before the kernel queued last has ended.
struct QkvTokens {
  const __nv_bfloat16* qkv = nullptr;  // [tokens, (heads + 2 kv_heads) * head_dim]: q, k, v
  const int32_t* positions = nullptr;  // [tokens], in the token's sequence
  const int32_t* slots = nullptr;      // [tokens], in the cache; -1: neither q, k nor v is written
  const float* frequencies = nullptr;  // [head_dim / 2], angle per position of each pair of
                                       // channels, any scaling applied; null: no rotation (OPT)
  int64_t tokens = 0;
  int heads = 0;
};

// q: bf16 [tokens, heads, StoredHeadDim(head_dim)], aligned to 16 bytes: the rotated queries, zero
// beyond head_dim. Keys (rotated) and values go to their slots, as bf16 or as e4m3(x / scale).
// Rotate-half convention: channel i pairs with i + head_dim / 2, the angle position * frequency is
// one f32 product as in the CPU's forward. A token depends on no other. qkv is aligned to 16 bytes.
// INVALID_ARGUMENT for shapes that don't fit `kv` and misaligned or missing pointers.
absl::Status RotateAndAppend(const QkvTokens& step, const PagedKv& kv, __nv_bfloat16* q,
                             cudaStream_t stream);

}  // namespace nibble
