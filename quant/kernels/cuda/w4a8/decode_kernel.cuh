// The decode kernel (plan.h has the division of work and the shared memory).
//
// A block's last warp brings slices of weights and of x through a ring of stages, the others x of
// its first round; each warpgroup multiplies the slices of one row tile and part of K, the weights
// as wgmma's A in registers; then the parts' sums meet (decode_sums.cuh). With LoRC, the grid's
// first blocks compute t (decode_lorc.cuh).
#pragma once

#include <cstdint>

#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_block.cuh"
#include "quant/kernels/cuda/w4a8/decode_lorc.cuh"
#include "quant/kernels/cuda/w4a8/decode_product.cuh"
#include "quant/kernels/cuda/w4a8/decode_ring.cuh"
#include "quant/kernels/cuda/w4a8/decode_sums.cuh"
#include "quant/kernels/cuda/w4a8/ptx.cuh"

namespace nibble::w4a8 {

__device__ __forceinline__ SliceStream TileStream(const DecodeArguments& args,
                                                  const DecodeBlock& block) {
  return {args.weights.slices + int64_t{block.first_tile} * args.slice_bytes,
          args.weights.row_tiles * args.slice_bytes,
          block.tiles,
          args.plan.k_groups,
          args.part_slices,
          block.split * args.plan.k_groups * args.part_slices,
          args.slice_count};
}

__device__ __forceinline__ Ring MakeRing(const DecodeArguments& args, uint32_t base, bool lorc) {
  const uint32_t barriers = base + args.shared.barriers;
  Ring ring = {args.plan.stages,
               args.plan.token_tile * kSliceCols,
               args.slice_bytes,
               args.plan.tiles,
               base,
               base + args.shared.codes,
               barriers,
               barriers + args.plan.stages * 8};
  if (lorc) {
    const int bytes = args.shared.factor - args.shared.codes;
    ring.tiles = 1;
    ring.slice_bytes = LorcSliceBytes(LorcPiece(args).bands);
    ring.stages = min(ring.stages, bytes / ring.slice_bytes);
  }
  return ring;
}

// The loading warp's part of what no slice holds: the rows' scales, LoRC's factor A and the bias.
__device__ __forceinline__ void LoadSideWeights(const DecodeArguments& args,
                                                const DecodeBlock& block,
                                                const DecodeSmall& small) {
  const int rank_bytes = static_cast<int>(LorcAUnits(args.weights.max_rank)) * 16;
  const uint32_t bias_bytes = args.weights.bias == nullptr ? 0 : block.tiles * kTileRows * 2;
  const uint32_t scale_bytes = block.tiles * kTileRows * 4;
  uint32_t bytes = bias_bytes + scale_bytes;
  BulkLoad(small.row_scale, args.weights.row_scale + block.first_tile * kTileRows, scale_bytes,
           small.side, EvictFirst());
  for (int tile = 0; tile < block.tiles && block.split == 0; ++tile) {
    const RowTile place = Locate(args.weights.segments, block.first_tile + tile);
    const uint32_t factor_bytes = static_cast<uint32_t>(LorcAUnits(place.rank)) * 16;
    if (factor_bytes == 0) continue;
    BulkLoad(small.factor + tile * rank_bytes, args.weights.lorc_a + place.lorc_a, factor_bytes,
             small.side, EvictFirst());
    bytes += factor_bytes;
  }
  if (bias_bytes > 0) {
    BulkLoad(small.bias, args.weights.bias + block.first_tile * kTileRows, bias_bytes, small.side,
             EvictFirst());
  }
  BarrierArriveExpect(small.side, bytes);
}

// The loading warp of a block. Lane 0 keeps the ring full, with weights before earlier grids have
// ended; the others fetch what only the epilogue needs.
__device__ __forceinline__ void Load(const DecodeArguments& args, const DecodeBlock& block,
                                     const DecodeSmall& small, Producer& producer, bool lorc,
                                     int lane) {
  if (lane == 0) {
    PrefetchTensorMap(&args.x);
    producer.Prologue();
    if (!lorc) LoadSideWeights(args, block, small);
  }
  WaitForEarlierGrids();
  if (lane == 0) {
    producer.Run();
    LetNextGridStart();  // not earlier: its blocks would crowd where this grid leaves room
  } else if (!lorc) {
    for (int token = lane - 1; token < args.tokens; token += 31) {
      SharedStore4(small.x_scale + token * 4, args.x_scale[token]);
    }
  }
  __syncwarp();
  if (lorc) return;
  if (args.plan.lorc_tiles > 0 && block.split == 0) {
    FetchLorc(args, small.t, block.first_tile, lane);
  }
  BarrierArrive(small.side);
}

// One warpgroup's row tile and part of K, and its share of y; `base` is the ring's place.
template <Kind kKind, int kGroups, int kTokens>
__device__ __forceinline__ void MultiplyTile(const DecodeArguments& args, const DecodeBlock& block,
                                             const SliceStream& stream, const Ring& ring,
                                             const DecodeSmall& small, uint32_t base) {
  const DecodePlan& plan = args.plan;
  // Known to be the same for all of a warp, as what a product's descriptor follows from must be:
  // the compiler sees it in this very form.
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int tile = warpgroup % plan.tiles;
  const int part = warpgroup / plan.tiles;
  const int row_tile = block.first_tile + min(tile, block.tiles - 1);

  Sums<kTokens> sums = {};
  if constexpr (kKind == Kind::kFolded) {
    FoldedSums<kGroups, kTokens> folded(small.tables, thread);
    const uint32_t codes = Opaque(ring.Codes(0, tile));
    const int stage_bytes = ring.tiles * ring.slice_bytes;
    const uint64_t x = SwizzledDescriptor(ring.x);
    const int x_step = ring.x_bytes / 16;
    ConsumePipelined(
        stream, ring, part,
        [&](int stage) { folded.Add(codes + stage * stage_bytes, x + stage * x_step); },
        [&] { folded.Finish(); });
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] = folded.sums()[i];
  } else {
    Consume(stream, ring, part, [&](int stage) {
      AddScaledSlice<kKind, kGroups, kTokens>(ring.Codes(stage, tile), ring.X(stage), small.tables,
                                              FoldBias(args.weights.format), thread, sums);
    });
  }
  BarrierWait(small.side, 0);
  const uint32_t row_scale = small.row_scale + tile * kTileRows * 4;
  const float scale[2] = {__uint_as_float(SharedLoad4(row_scale + RowOf(thread, 0) * 4)),
                          __uint_as_float(SharedLoad4(row_scale + RowOf(thread, 1) * 4))};
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i] *= scale[i / 2 % 2];
  if (part == 0 && block.split == 0 && plan.lorc_tiles > 0) {
    const RowTile place = Locate(args.weights.segments, row_tile);
    const int max_rank = args.weights.max_rank;
    AddLorc<kTokens>(small.factor + tile * static_cast<int>(LorcAUnits(max_rank)) * 16,
                     small.t + tile * kTokens * LorcPitch(max_rank), place.rank, thread, sums);
  }
  const PartSums<kTokens> part_sums(args, block, small, base, base + args.shared.staging, tile,
                                    part, thread);
  part_sums.Leave(sums);
  if (tile >= block.tiles) return;
  part_sums.Gather();
  part_sums.Write(Locate(args.weights.segments, row_tile));
}

template <Kind kKind, int kGroups, int kTokens>
__device__ __forceinline__ void Decode(const DecodeArguments& args) {
  extern __shared__ uint8_t shared[];
  const DecodePlan& plan = args.plan;
  const uint32_t base = static_cast<uint32_t>(RoundUp(SharedAddress(shared), kSharedAlignment));
  const bool lorc = static_cast<int>(blockIdx.x) < plan.lorc_blocks();
  const bool loads = static_cast<int>(threadIdx.x) >= plan.warpgroups() * 128;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const DecodeBlock block(args);
  const SliceStream stream = lorc ? LorcStream(args) : TileStream(args, block);
  const Ring ring = MakeRing(args, base, lorc);
  const DecodeSmall small(args, base);
  Producer producer(stream, ring, &args.x);

  if (loads) {
    if (lane == 0) {
      for (int stage = 0; stage < ring.stages; ++stage) {
        BarrierInit(ring.Full(stage), 1);
        BarrierInit(ring.Empty(stage), 4 * ring.tiles);
      }
      BarrierInit(small.side, 32 + 1);
      BarrierInit(small.received_barrier, 1);
      FenceBarrierInit();
      FenceAsyncShared();
    }
  } else if (threadIdx.x < kFoldTables) {
    const FoldTable table = MakeFoldTable(args.weights.format, static_cast<int>(threadIdx.x));
    SharedStore8(small.tables + threadIdx.x * sizeof(FoldTable), {table.low, table.high});
  }
  __syncthreads();
  if (plan.splits > 1) ClusterArriveRelaxed();  // PartSums waits for it

  if (loads) {
    if (lane == 0 && !lorc) {
      BarrierArriveExpect(small.received_barrier, ReceivedBytes(args, block));
    }
    Load(args, block, small, producer, lorc, lane);
  } else {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    FetchFirstX(args, stream, ring, warp, plan.warpgroups() * 4);
    NamedBarrier(2 + warp / 4, 128);  // converged again, as the compiler sees it
    if (lorc) {
      MultiplyLorcPiece<kTokens>(args, stream, ring);
    } else {
      MultiplyTile<kKind, kGroups, kTokens>(args, block, stream, ring, small, base);
    }
  }
}

}  // namespace nibble::w4a8
