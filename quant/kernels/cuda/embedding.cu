#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/embedding.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/row.cuh"

namespace nibble {
namespace {

struct Table {
  const uint4* rows;  // or null
  const int32_t* index;
  int64_t count;
};

__device__ const uint4* RowOf(const Table& table, int octets, bool* inside) {
  const int32_t row = table.index[blockIdx.x];
  *inside = *inside && row >= 0 && row < table.count;
  return table.rows + int64_t{row} * octets;
}

// One block a token.
__global__ void __launch_bounds__(kMaxRowThreads)
    EmbedKernel(Table tokens, Table positions, int octets, uint4* out) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  bool inside = true;
  const uint4* row = RowOf(tokens, octets, &inside);
  const uint4* position = positions.rows == nullptr ? nullptr : RowOf(positions, octets, &inside);
  uint4* to = out + int64_t{blockIdx.x} * octets;
  for (int i = threadIdx.x; i < octets; i += blockDim.x) {
    uint4 raw = make_uint4(~0u, ~0u, ~0u, ~0u);  // NaNs
    if (inside) raw = row[i];
    if (inside && position != nullptr) {
      Octet sum = Unpack(raw);
      const Octet addend = Unpack(position[i]);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) sum.x[e] += addend.x[e];
      raw = Pack(sum);
    }
    to[i] = raw;
  }
}

}  // namespace

absl::Status Embed(const __nv_bfloat16* table, int64_t vocab, int64_t width, const int32_t* ids,
                   const PositionTable* positions, int64_t tokens, __nv_bfloat16* out,
                   cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckRows("embedding", tokens, width));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("table", table, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("ids", ids, 4));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("out", out, 16));
  Table places{};
  if (positions != nullptr) {
    NIBBLE_RETURN_IF_ERROR(CheckPointer("positions.rows", positions->rows, 16));
    NIBBLE_RETURN_IF_ERROR(CheckPointer("positions.positions", positions->positions, 4));
    places = {reinterpret_cast<const uint4*>(positions->rows), positions->positions,
              positions->count};
  }
  if (tokens == 0) return absl::OkStatus();
  const RowShape shape = ShapeOfRow(width);
  return LaunchOverlapped("Embed", EmbedKernel, static_cast<unsigned>(tokens), shape.threads, 0,
                          stream, Table{reinterpret_cast<const uint4*>(table), ids, vocab}, places,
                          shape.octets, reinterpret_cast<uint4*>(out));
}

}  // namespace nibble
