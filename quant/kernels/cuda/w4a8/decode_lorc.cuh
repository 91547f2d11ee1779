// LoRC in the decode kernel: t = x B^T by blocks of its own, handed through global memory to the
// blocks of the weights, which add t A^T.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_block.cuh"
#include "quant/kernels/cuda/w4a8/decode_product.cuh"
#include "quant/kernels/cuda/w4a8/decode_ring.cuh"
#include "quant/kernels/cuda/w4a8/ptx.cuh"

namespace nibble::w4a8 {

// A LoRC block's place: one piece of K of one LoRC tile.
struct LorcPiece {
  int tile;
  int piece;
  int bands;  // of 16 rows: hi, then lo

  __device__ explicit LorcPiece(const DecodeArguments& args)
      : tile(DivideByPower(static_cast<int>(blockIdx.x), args.plan.lorc_pieces)),
        piece(static_cast<int>(blockIdx.x) & (args.plan.lorc_pieces - 1)),
        bands(LorcBands(args.weights.ranks, tile)) {}
};

__device__ __forceinline__ SliceStream LorcStream(const DecodeArguments& args) {
  const LorcPiece piece(args);
  const uint8_t* weights =
      args.weights.lorc_b + int64_t{piece.tile} * args.slice_count * kLorcSliceBytes;
  return {weights,
          LorcSliceBytes(piece.bands),
          1,
          1,
          args.piece_slices,
          piece.piece * args.piece_slices,
          args.slice_count};
}

// Where the piece's sums go: [64][token tile].
__device__ __forceinline__ float* LorcSums(const DecodeArguments& args, const LorcPiece& at,
                                           int piece) {
  return args.lorc.sums +
         (int64_t{at.tile} * args.plan.lorc_pieces + piece) * kTileRows * args.plan.token_tile;
}

// t of the whole tile from all pieces' sums, pieces added in the order of K; by all warpgroups.
template <int kTokens>
__device__ void CompleteLorcTile(const DecodeArguments& args, const LorcPiece& at) {
  const int ranks = at.bands / 2 * kRankBand;
  for (int i = static_cast<int>(threadIdx.x); i < ranks * kTokens / 4;
       i += args.plan.warpgroups() * 128) {
    const int rank = i / (kTokens / 4);
    const int token = i % (kTokens / 4) * 4;
    float4 high[kMaxLorcPieces] = {};
    float4 low[kMaxLorcPieces] = {};
#pragma unroll
    for (int piece = 0; piece < kMaxLorcPieces; ++piece) {
      if (piece >= args.plan.lorc_pieces) break;
      const float* sums = LorcSums(args, at, piece) + token;
      high[piece] = __ldcg(reinterpret_cast<const float4*>(sums + rank * kTokens));
      low[piece] = __ldcg(reinterpret_cast<const float4*>(sums + (ranks + rank) * kTokens));
    }
    float t[4] = {};
#pragma unroll
    for (int piece = 0; piece < kMaxLorcPieces; ++piece) {
      constexpr float kLow = 1.f / (1 << kLorcLowShift);
      t[0] += fmaf(low[piece].x, kLow, high[piece].x);
      t[1] += fmaf(low[piece].y, kLow, high[piece].y);
      t[2] += fmaf(low[piece].z, kLow, high[piece].z);
      t[3] += fmaf(low[piece].w, kLow, high[piece].w);
    }
    const int place = at.tile * kLorcTileRanks + rank;  // among all ranks
    const float scale = args.weights.lorc_scale[place];
    __nv_bfloat16* to =
        args.lorc.t + (place / kRankBand * kTokens + token) * kRankBand + place % kRankBand;
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j * kRankBand] = __float2bfloat16_rn(t[j] * scale);
  }
}

// The warpgroups of a LoRC block. The first multiplies; the block whose piece is the tile's last
// to come completes t.
template <int kTokens>
__device__ void MultiplyLorcPiece(const DecodeArguments& args, const SliceStream& stream,
                                  const Ring& ring) {
  __shared__ bool last;
  const LorcPiece at(args);
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = args.plan.warpgroups() * 128;
  if (thread < 128) {
    Sums<kTokens> sums = {};
    Consume(stream, ring, 0, [&](int stage) {
      Fragments a;
      LoadBytes(ring.Codes(stage, 0), at.bands, thread, a);
      AddProduct<kTokens>(a, ring.X(stage), sums);
    });
    float* to = LorcSums(args, at, at.piece);
    if (thread / 32 < at.bands) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; i += 2) {
        const int row = RowOf(thread, i / 2 % 2);
        const int token = i / 4 * 8 + thread % 4 * 2;
        *reinterpret_cast<float2*>(to + row * kTokens + token) = {sums[i], sums[i + 1]};
      }
    }
    __threadfence();
  }
  NamedBarrier(kWarpgroupsBarrier, threads);
  if (thread == 0) {
    last = atomicAdd(args.lorc.pieces + at.tile, 1) + 1 ==
           static_cast<uint32_t>(args.plan.lorc_pieces);
    __threadfence();
  }
  NamedBarrier(kWarpgroupsBarrier, threads);
  if (!last) return;
  CompleteLorcTile<kTokens>(args, at);
  __threadfence();
  NamedBarrier(kWarpgroupsBarrier, threads);
  if (thread == 0) {
    args.lorc.pieces[at.tile] = 0;
    ReleaseAdd(args.lorc.done, 1);
  }
}

// The loading warp of a block of weights: t of its row tiles to shared memory, once it is complete.
__device__ inline void FetchLorc(const DecodeArguments& args, uint32_t t, int first_tile,
                                 int lane) {
  while (AcquireLoad(args.lorc.done) != static_cast<uint32_t>(args.plan.lorc_tiles)) {
  }
  const int tokens = args.plan.token_tile;
  const int tile_bytes = tokens * LorcPitch(args.weights.max_rank);
  for (int tile = 0; tile < args.plan.tiles; ++tile) {
    if (first_tile + tile >= args.weights.row_tiles) break;
    const RowTile place = Locate(args.weights.segments, first_tile + tile);
    const auto* from = reinterpret_cast<const uint4*>(args.lorc.t + place.first_rank * tokens);
    for (int i = lane; i < place.rank / kRankBand * tokens * 2; i += 32) {  // 8 ranks of a token
      const int band = i / (2 * tokens);
      const int token = i / 2 % tokens;
      SharedStore16(t + tile * tile_bytes + token * LorcPitch(place.rank) + band * 32 + i % 2 * 16,
                    __ldcg(from + i));
    }
  }
  __syncwarp();
  if (lane != 0) return;
  if (atomicAdd(args.lorc.seen, 1) + 1 == static_cast<uint32_t>(args.plan.row_blocks)) {
    *args.lorc.seen = 0;
    *args.lorc.done = 0;
  }
}

// sums += t A^T for one row tile's warpgroup; `factor` and `t` are its shared-memory addresses.
template <int kTokens>
__device__ __forceinline__ void AddLorc(uint32_t factor, uint32_t t, int rank, int thread,
                                        Sums<kTokens>& sums) {
  const int lane = thread % 32;
  for (int band = 0; band < rank / kRankBand; ++band) {
    const uint4 a = SharedLoad16(factor + (band * 128 + thread) * 16);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      const uint32_t b = t + (8 * j + lane / 4) * LorcPitch(rank) + band * 32 + lane % 4 * 4;
      float d[4] = {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
      MmaBf16(d, a, SharedLoad4(b), SharedLoad4(b + 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[4 * j + i] = d[i];
    }
  }
}

}  // namespace nibble::w4a8
