// The decode kernel (plan.h has the division of work and the shared memory).
//
// A block's last warp brings slices of weights and of x through a ring of stages; each warpgroup
// multiplies the slices of one row tile and part of K, the weights as wgmma's A in registers. The
// parts' sums meet in shared memory, a cluster's in that of all its blocks. With LoRC, the grid's
// first blocks compute t (decode_lorc.cuh).
#pragma once

#include <cstdint>

#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_lorc.cuh"
#include "quant/kernels/cuda/w4a8/decode_product.cuh"
#include "quant/kernels/cuda/w4a8/decode_ring.cuh"
#include "quant/kernels/cuda/w4a8/ptx.cuh"

namespace nibble::w4a8 {

// A block's place in the grid; LoRC blocks have none.
struct DecodeBlock {
  int first_tile;
  int tiles;  // that exist
  int split;

  __device__ explicit DecodeBlock(const DecodeArguments& args) {
    const int block = static_cast<int>(blockIdx.x) - args.plan.lorc_blocks();
    first_tile = block / args.plan.splits * args.plan.tiles;
    tiles = min(args.plan.tiles, static_cast<int>(args.weights.row_tiles) - first_tile);
    split = block % args.plan.splits;
  }
};

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

// Addresses beside the ring.
struct DecodeSmall {
  uint32_t tables;
  uint32_t x_scale;
  uint32_t bias;
  uint32_t factor;
  uint32_t t;
  uint32_t side;

  __device__ DecodeSmall(const DecodeArguments& args, uint32_t base)
      : tables(base + args.shared.small),
        x_scale(tables + kFoldTableBytes),
        bias(x_scale + args.plan.token_tile * 4),
        factor(base + args.shared.factor),
        t(base + args.shared.t),
        side(base + args.shared.barriers + 2 * args.plan.stages * 8) {}
};

// The loading warp's part of what no slice holds: LoRC's factor A and the bias, both weights.
__device__ __forceinline__ void LoadSideWeights(const DecodeArguments& args,
                                                const DecodeBlock& block,
                                                const DecodeSmall& small) {
  const int rank_bytes = static_cast<int>(LorcAUnits(args.weights.max_rank)) * 16;
  const uint32_t bias_bytes = args.weights.bias == nullptr ? 0 : block.tiles * kTileRows * 2;
  uint32_t bytes = bias_bytes;
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
    if (lorc) {
      BarrierArrive(small.side);
    } else {
      LoadSideWeights(args, block, small);
    }
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
  if (!lorc && args.plan.lorc_tiles > 0 && block.split == 0) {
    FetchLorc(args, small.t, block.first_tile, lane);
  }
  BarrierArrive(small.side);
}

// Leaves a warpgroup's sums, scaled by row, as f32 [token][SumPitch] at `to`.
template <int kTokens>
__device__ __forceinline__ void StoreSums(const Sums<kTokens>& sums, uint32_t to, int pitch,
                                          int thread) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + thread % 4 * 2 + i % 2;
    SharedStore4(to + (token * pitch + RowOf(thread, i / 2 % 2)) * 4, sums[i]);
  }
}

// A thread's share of the block's part of y: four neighbouring rows of every `step`th token.
struct OutputShare {
  int row;    // the first of the four, in the block's row tiles
  int token;  // the first
  int step;
  int col = 0;   // of `row` in y
  int rows = 0;  // of the four that exist

  __device__ OutputShare(const DecodeArguments& args, const DecodeBlock& block) {
    const int thread = static_cast<int>(threadIdx.x);
    const int quads = args.plan.tiles * kTileRows / 4 / args.plan.splits;
    row = (block.split * quads + thread % quads) * 4;
    token = thread / quads;
    step = args.plan.warpgroups() * 128 / quads;
    if (row >= block.tiles * kTileRows) return;
    const RowTile place = Locate(args.weights.segments, block.first_tile + row / kTileRows);
    col = place.first_col + row % kTileRows;
    rows = min(max(place.rows - row % kTileRows, 0), 4);
  }
};

// y of the share's rows for one token.
__device__ __forceinline__ void StoreOutputs(const DecodeArguments& args, const OutputShare& share,
                                             int token, const float4& v) {
  const int64_t at = int64_t{token} * args.weights.rows + share.col;
  const bool whole = share.rows == 4 && at % 4 == 0;
  if (args.y_f32 != nullptr) {
    if (whole) {
      *reinterpret_cast<float4*>(args.y_f32 + at) = v;
    } else {
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < share.rows) args.y_f32[at + i] = values[i];
      }
    }
    return;
  }
  const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x, v.y),
                                   __floats2bfloat162_rn(v.z, v.w)};
  if (whole) {
    *reinterpret_cast<uint2*>(args.y + at) = *reinterpret_cast<const uint2*>(pairs);
  } else {
    const __nv_bfloat16 halves[4] = {pairs[0].x, pairs[0].y, pairs[1].x, pairs[1].y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < share.rows) args.y[at + i] = halves[i];
    }
  }
}

// Adds the parts' sums of the share in the order of K, the loads of kParts parts and all tokens
// under way at once, and writes y. The share's step is 8 tokens a part, hence kCount.
template <int kTokens, int kParts>
__device__ __forceinline__ void WriteShare(const DecodeArguments& args, const OutputShare& share,
                                           const DecodeSmall& small, uint32_t sums) {
  constexpr int kCount = kTokens / 8 > kParts ? kTokens / 8 / kParts : 1;
  const DecodePlan& plan = args.plan;
  const int pitch = SumPitch(plan.tiles);
  float4 v[kCount] = {};
  float scale[kCount];
  for (int first = 0; first < plan.parts(); first += kParts) {
    float4 p[kCount][kParts] = {};
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const int token = share.token + t * share.step;
      if (token >= args.tokens) break;
      scale[t] = __uint_as_float(SharedLoad4(small.x_scale + token * 4));
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int part = first + i;
        const uint32_t at =
            sums + ((part % plan.k_groups * kTokens + token) * pitch + share.row) * 4;
        p[t][i] = plan.splits == 1 ? AsFloats(SharedLoad16(at))
                                   : ClusterLoad16(ClusterAddress(at, part / plan.k_groups));
      }
    }
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        v[t] = {v[t].x + p[t][i].x, v[t].y + p[t][i].y, v[t].z + p[t][i].z, v[t].w + p[t][i].w};
      }
    }
  }
  float4 bias = {};
  if (args.weights.bias != nullptr) {
    const uint2 pairs = SharedLoad8(small.bias + share.row * 2);
    bias = {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
            __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
  }
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    const int token = share.token + t * share.step;
    if (token >= args.tokens) break;
    StoreOutputs(args, share, token,
                 {v[t].x * scale[t] + bias.x, v[t].y * scale[t] + bias.y,
                  v[t].z * scale[t] + bias.z, v[t].w * scale[t] + bias.w});
  }
}

template <int kTokens>
__device__ __forceinline__ void WriteOutputs(const DecodeArguments& args, const DecodeBlock& block,
                                             const DecodeSmall& small, uint32_t sums) {
  const OutputShare share(args, block);
  if (share.rows == 0) return;
  switch (args.plan.parts()) {
    case 1:
      return WriteShare<kTokens, 1>(args, share, small, sums);
    case 2:
      return WriteShare<kTokens, 2>(args, share, small, sums);
    case 4:
      return WriteShare<kTokens, 4>(args, share, small, sums);
    default:  // as many at once as registers hold
      return WriteShare<kTokens, (kTokens > 16 ? 8 : 4)>(args, share, small, sums);
  }
}

// One warpgroup's row tile and part of K, ending with its sums in shared memory at `base`.
template <Kind kKind, int kGroups, int kTokens>
__device__ __forceinline__ void MultiplyTile(const DecodeArguments& args, const DecodeBlock& block,
                                             const SliceStream& stream, const Ring& ring,
                                             const DecodeSmall& small, uint32_t base) {
  const DecodePlan& plan = args.plan;
  // Known to be the same for all of a warp, as what a product's descriptor follows from must be.
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int tile = warpgroup % plan.tiles;
  const int part = warpgroup / plan.tiles;
  const int row_tile = block.first_tile + min(tile, block.tiles - 1);
  const float* row_scale = args.weights.row_scale + row_tile * kTileRows;
  const float scale[2] = {row_scale[RowOf(thread, 0)], row_scale[RowOf(thread, 1)]};

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
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i] *= scale[i / 2 % 2];
  BarrierWait(small.side, 0);
  if (part == 0 && block.split == 0 && plan.lorc_tiles > 0) {
    const RowTile place = Locate(args.weights.segments, row_tile);
    const int max_rank = args.weights.max_rank;
    AddLorc<kTokens>(small.factor + tile * static_cast<int>(LorcAUnits(max_rank)) * 16,
                     small.t + tile * kTokens * LorcPitch(max_rank), place.rank, thread, sums);
  }
  NamedBarrier(kWarpgroupsBarrier, plan.warpgroups() * 128);  // the ring is empty
  const int pitch = SumPitch(plan.tiles);
  StoreSums<kTokens>(sums, base + (part * kTokens * pitch + tile * kTileRows) * 4, pitch, thread);
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
      FenceBarrierInit();
      FenceAsyncShared();
    }
  } else if (threadIdx.x < kFoldTables) {
    const FoldTable table = MakeFoldTable(args.weights.format, static_cast<int>(threadIdx.x));
    SharedStore8(small.tables + threadIdx.x * sizeof(FoldTable), {table.low, table.high});
  }
  __syncthreads();

  if (loads) {
    Load(args, block, small, producer, lorc, lane);
  } else {
    const int threads = plan.warpgroups() * 128;
    FetchFirstX(args, stream, ring, static_cast<int>(threadIdx.x), threads);
    NamedBarrier(kWarpgroupsBarrier, threads);
    if (lorc) {
      MultiplyLorcPiece<kTokens>(args, stream, ring, small.side);
    } else {
      MultiplyTile<kKind, kGroups, kTokens>(args, block, stream, ring, small, base);
    }
  }
  if (lorc) return;

  if (plan.splits > 1) {
    ClusterArrive();
    ClusterWait();
  } else {
    __syncthreads();
  }
  if (!loads) WriteOutputs<kTokens>(args, block, small, base);
  if (plan.splits > 1) {  // others read this block's sums
    ClusterArriveRelaxed();
    ClusterWait();
  }
}

}  // namespace nibble::w4a8
