// LoRC's first product for many tokens: a small part of the work, so that plain loads and one
// warp's mma do.
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/wide.h"

namespace nibble::w4a8 {
namespace {

// A block has kTokens tokens x one band of 16 ranks; its warps share K, slice by slice.
constexpr int kTokens = 32;
constexpr int kWarps = 8;

struct LorcArguments {
  const uint8_t* x;
  int64_t x_pitch;
  int tokens;
  int cols;
  const uint8_t* lorc_b;  // see LorcTiles
  const float* lorc_scale;
  int ranks;
  int slice_count;
  __nv_bfloat16* t;
};

// Four E4M3 codes from column `col` on; columns from `cols` on are zeros. `row` may be read up to
// the next multiple of 16 bytes.
__device__ __forceinline__ uint32_t LoadCodes(const uint8_t* row, int col, int cols) {
  if (col >= cols) return 0;
  const uint32_t four = __ldg(reinterpret_cast<const uint32_t*>(row + col));
  return cols - col >= 4 ? four : four & ((1u << 8 * (cols - col)) - 1);
}

// One warp's part of K: high[n], low[n] are [16 ranks][8 tokens 8n..] as MmaE4M3 has them.
__device__ __forceinline__ void MultiplyPart(const LorcArguments& args, int band, int first_token,
                                             int warp, int lane, float (&high)[kTokens / 8][4],
                                             float (&low)[kTokens / 8][4]) {
  const int tile = band / (kLorcTileRanks / kRankBand);
  const int bands = LorcBands(args.ranks, tile);
  const uint8_t* b = args.lorc_b +
                     int64_t{tile} * args.slice_count * LorcSliceBytes(2 * kLorcTileRanks / 16) +
                     (band % 2 * 32 + lane) * 16;
  const uint8_t* x[kTokens / 8];
#pragma unroll
  for (int n = 0; n < kTokens / 8; ++n) {
    const int token = first_token + 8 * n + lane / 4;
    x[n] = args.x + int64_t{token < args.tokens ? token : args.tokens - 1} * args.x_pitch;
  }
  for (int slice = warp; slice < args.slice_count; slice += kWarps) {
#pragma unroll
    for (int step = 0; step < kSliceCols / kStepCols; ++step) {
      const uint8_t* at = b + int64_t{slice} * LorcSliceBytes(bands) + step * bands * 512;
      const uint4 a_high = __ldg(reinterpret_cast<const uint4*>(at));
      const uint4 a_low = __ldg(reinterpret_cast<const uint4*>(at + bands / 2 * 512));
      const int col = slice * kSliceCols + step * kStepCols + lane % 4 * 4;
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
        const uint32_t x0 = LoadCodes(x[n], col, args.cols);
        const uint32_t x1 = LoadCodes(x[n], col + 16, args.cols);
        MmaE4M3(high[n], a_high, x0, x1);
        MmaE4M3(low[n], a_low, x0, x1);
      }
    }
  }
}

__global__ void __launch_bounds__(kWarps * 32) LorcProduct(const LorcArguments args) {
  __shared__ float parts[kWarps][kTokens][kRankBand];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_token = static_cast<int>(blockIdx.x) * kTokens;
  const int band = static_cast<int>(blockIdx.y);
  float high[kTokens / 8][4] = {};
  float low[kTokens / 8][4] = {};
  MultiplyPart(args, band, first_token, warp, lane, high, low);
  constexpr float kLow = 1.f / (1 << kLorcLowShift);
#pragma unroll
  for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][8 * n + lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] =
          high[n][i] + low[n][i] * kLow;
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kRankBand; i += kWarps * 32) {
    const int token = i / kRankBand;
    const int rank = i % kRankBand;
    if (first_token + token >= args.tokens) break;
    float sum = 0;
    for (int part = 0; part < kWarps; ++part) sum += parts[part][token][rank];
    const int64_t column = band * kRankBand + rank;
    args.t[int64_t{first_token + token} * args.ranks + column] =
        __float2bfloat16(sum * args.lorc_scale[column]);
  }
}

}  // namespace

absl::Status LaunchLorcProduct(const PreparedLinear& weights, const LinearCall& call,
                               __nv_bfloat16* t, cudaStream_t stream) {
  const LorcArguments args = {.x = call.x,
                              .x_pitch = call.x_pitch,
                              .tokens = static_cast<int>(call.tokens),
                              .cols = static_cast<int>(weights.cols),
                              .lorc_b = weights.lorc_b,
                              .lorc_scale = weights.lorc_scale,
                              .ranks = weights.ranks,
                              .slice_count = static_cast<int>(weights.slice_count()),
                              .t = t};
  const dim3 grid(static_cast<unsigned>(CeilDiv(call.tokens, kTokens)), weights.ranks / kRankBand);
  LorcProduct<<<grid, kWarps * 32, 0, stream>>>(args);
  return CheckLaunch("W4A8 LoRC product");
}

}  // namespace nibble::w4a8
