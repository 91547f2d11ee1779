// The W4A8 product of more than 64 tokens. y^T tiles of 64 rows x kTokens a warpgroup: A, the
// weights, comes from registers; B, the activations, from shared memory.
//
// One producer thread keeps a ring of stages full (bulk copies of weight slices, tensor copies of
// activations that a cluster shares). Each of two warpgroups queues the four products of a slice
// and makes the fragments of the next one meanwhile, in the other of two sets of registers. While
// one moves its sums to f32, the tensor cores have the other's four products to work at.
//
// Under kExpanded the producer's other warps expand all weights once (wide_expand.cuh), and
// fragments are mere loads.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "quant/kernels/cuda/w4a8/dequant.cuh"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/wgmma.cuh"
#include "quant/kernels/cuda/w4a8/wide_epilogue.cuh"
#include "quant/kernels/cuda/w4a8/wide_expand.cuh"
#include "quant/kernels/cuda/w4a8/wide_plan.h"

namespace nibble::w4a8 {

// Preconditions: a grid of plan.clusters * plan.cluster blocks of kWideThreads threads, all
// resident at once under kExpanded; dynamic shared memory of plan.shared_bytes.
struct WideArguments {
  CUtensorMap x;  // boxes of [token tile / cluster][128]
  WideOutput output;
  ExpandJob expand;  // also the folded weights and their shape
  FoldTables tables;
  WidePlan plan;
  WideShared shared;
};

// The registers of the warpgroups: 65,536 / 128 = 512 for one thread of each.
inline constexpr int kProducerRegisters = 72;
inline constexpr int kConsumerRegisters = 216;

template <WideSource kSourceOf, int kRowTilesOf, int kTokensOf, bool kPromoteOf, bool kFineOf>
struct WideConfig {
  static constexpr WideSource kSource = kSourceOf;
  static constexpr int kRowTiles = kRowTilesOf;  // of a block
  static constexpr int kTokens = kTokensOf;      // of a tile
  static constexpr bool kPromote = kPromoteOf;
  static constexpr bool kFine = kFineOf;  // groups smaller than a slice
  static constexpr int kSliceStep =
      kRowTiles == 1 ? 2 : 1;                // slices from a warpgroup's to its next
  static constexpr int kSums = kTokens / 2;  // of a thread
  static constexpr int kXBytes = kTokens * kSliceCols;
};

// A place in the ring of stages, and the parity of its phase.
struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Advance(int by, int stages) {
    stage += by;
    if (stage >= stages) {
      stage -= stages;
      phase ^= 1;
    }
  }
};

// A block's shared memory by address.
struct WideRing {
  uint32_t x;
  uint32_t weights;
  uint32_t full;
  uint32_t empty;
  int stages;
  int weight_bytes;  // of one row tile's slice
};

// A fragment of half a slice (columns 64 * half + 0..63): what a thread reads, and how it becomes
// A's registers.
template <bool kFine>
struct FoldedFragment {
  uint4 words;
  uint2 table[kFine ? 8 : 2];  // [row half], fine: [k-step][upper][row half]

  // `slice`: the address of the slice.
  __device__ __forceinline__ void Read(uint32_t slice, int half, int thread, uint32_t tables,
                                       int group_shift) {
    words = SharedLoad16(slice + half * 2048 + thread * 16);
    const uint32_t scales = slice + CodeBytes(Kind::kFolded) + thread / 32 * 8 + thread % 32 / 4;
    if constexpr (kFine) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {  // 16 columns
        const int group = (4 * half + part) >> group_shift;
        LoadTables(scales + group * kTilePairs, tables, &table[2 * part]);
      }
    } else if (half == 0) {
      LoadTables(scales, tables, table);
    }
  }

  __device__ __forceinline__ void Expand(uint32_t* a) const {
    if constexpr (kFine) {
      ExpandWord(words.x, table[0], table[2], a[0], a[2]);
      ExpandWord(words.y, table[1], table[3], a[1], a[3]);
      ExpandWord(words.z, table[4], table[6], a[4], a[6]);
      ExpandWord(words.w, table[5], table[7], a[5], a[7]);
    } else {
      const uint2 pair[2] = {table[0], table[1]};
      ExpandPair(words, pair, a);
    }
  }

 private:
  static __device__ __forceinline__ void LoadTables(uint32_t scale, uint32_t tables, uint2* table) {
    const uint32_t k = SharedLoad1(scale);
    table[0] = SharedLoad8(tables + (k & 15) * 8);
    table[1] = SharedLoad8(tables + (k >> 4) * 8);
  }
};

struct ExpandedFragment {
  uint32_t at;
  __device__ __forceinline__ void Read(uint32_t slice, int half, int thread, uint32_t, int) {
    at = slice + (2 * half * 128 + thread) * 16;
  }
  __device__ __forceinline__ void Expand(uint32_t* a) const {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 four = SharedLoad16(at + step * 2048);
      a[4 * step] = four.x;
      a[4 * step + 1] = four.y;
      a[4 * step + 2] = four.z;
      a[4 * step + 3] = four.w;
    }
  }
};

// Values are not read, or overwritten, by what stands before this.
template <int kCount>
__device__ __forceinline__ void Settle(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
// Products that read these registers have ended here.
template <int kCount>
__device__ __forceinline__ void KeepUntilHere(const uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" ::"r"(registers[i]) : "memory");
}

// One warpgroup's products of one tile.
template <class Config>
struct Multiplier {
  using Fragment = std::conditional_t<Config::kSource == WideSource::kExpanded, ExpandedFragment,
                                      FoldedFragment<Config::kFine>>;
  const WideRing& ring;
  uint32_t tables;
  int group_shift;
  int thread;     // of the warpgroup
  int warpgroup;  // 0 or 1
  int cluster;
  float products[Config::kSums];
  float sums[Config::kPromote ? Config::kSums : 1];
  uint32_t a[2][16];  // fragments of a slice, and of the next

  __device__ __forceinline__ uint32_t Slice(const RingPosition& at) const {
    const int tile = Config::kRowTiles == 1 ? 0 : warpgroup;
    return ring.weights + (at.stage * Config::kRowTiles + tile) * ring.weight_bytes;
  }
  __device__ __forceinline__ void MakeFragments(const RingPosition& at, uint32_t (&to)[16]) const {
    Fragment fragment;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      fragment.Read(Slice(at), half, thread, tables, group_shift);
      fragment.Expand(to + 8 * half);
    }
  }
  // Every block of the cluster may fill the stage again, as far as this warp is concerned.
  __device__ __forceinline__ void Release(const RingPosition& at) const {
    const int lane = thread % 32;
    if (lane < cluster) BarrierArriveClusterAsReader(ring.empty + at.stage * 8, lane);
  }
  // Promoted: products begin anew with each slice.
  __device__ __forceinline__ void Queue(const RingPosition& at, const uint32_t (&from)[16]) {
    const uint64_t x = SwizzledDescriptor(ring.x + at.stage * Config::kXBytes);
    WgmmaFence();
    Wgmma(products, from, x, Config::kPromote ? 0 : 1);
#pragma unroll
    for (int step = 1; step < 4; ++step) Wgmma(products, from + 4 * step, x + 2 * step, 1);
    WgmmaCommit();
  }
  __device__ __forceinline__ void Promote() {
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) sums[i] += products[i];
  }

  // The slice at `at`, whose fragments a[kNow] holds; leaves the next one's in the other.
  template <int kNow>
  __device__ __forceinline__ void MultiplySlice(RingPosition& at, bool last) {
    Queue(at, a[kNow]);
    const RingPosition now = at;
    if (!last) at.Advance(Config::kSliceStep, ring.stages);  // else reads this one again
    BarrierWait(ring.full + at.stage * 8, at.phase);
    MakeFragments(at, a[1 - kNow]);
    WgmmaWait<0>();
    KeepUntilHere(a[kNow]);
    Settle(products);
    Release(now);
    if constexpr (Config::kPromote) Promote();
  }

  // Multiplies `count` of the warpgroup's own slices, at least one, the first of them at `at`.
  __device__ __forceinline__ void Run(RingPosition at, int count) {
    Clear();
    BarrierWait(ring.full + at.stage * 8, at.phase);
    MakeFragments(at, a[0]);
#pragma unroll 1
    for (int left = count; left > 0; left -= 2) {
      MultiplySlice<0>(at, left == 1);
      if (left > 1) MultiplySlice<1>(at, left == 2);
    }
  }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (float& product : products) product = 0;
#pragma unroll
    for (float& sum : sums) sum = 0;
  }
  __device__ __forceinline__ float (&Sums())[Config::kSums] {
    if constexpr (Config::kPromote) {
      return sums;
    } else {
      return products;
    }
  }
};

// Which row tiles and tokens a block has in the walk's `index`th cluster tile.
struct BlockTile {
  int row_tile;  // the first
  int first_token;
};
__device__ __forceinline__ BlockTile BlockTileAt(const WidePlan& plan, int index, int rank) {
  const WideTile tile = WideTileAt(index, plan.row_groups, plan.token_tiles, plan.raster);
  return {(tile.row_group * plan.cluster + rank) * plan.row_tiles,
          tile.token_tile * plan.token_tile};
}
// A block without rows of its own multiplies the last ones again: its cluster counts on its part
// of the activations.
__device__ __forceinline__ int ExistingTile(int tile, int row_tiles) {
  return tile < row_tiles ? tile : row_tiles - 1;
}

template <class Config>
__device__ void Produce(const WideArguments& args, const WideRing& ring, int cluster_index,
                        int rank) {
  constexpr bool kExpanded = Config::kSource == WideSource::kExpanded;
  const WidePlan& plan = args.plan;
  const ExpandJob& job = args.expand;
  const int part = Config::kTokens / plan.cluster;  // tokens that this block loads
  const uint32_t bytes = Config::kXBytes + Config::kRowTiles * ring.weight_bytes;
  const auto everyone = static_cast<uint16_t>((1 << plan.cluster) - 1);
  const int64_t slice_stride = int64_t{kExpanded ? 1 : job.row_tiles} * ring.weight_bytes;
  RingPosition at;
  for (int index = cluster_index; index < plan.tiles(); index += plan.clusters) {
    const BlockTile tile = BlockTileAt(plan, index, rank);
    const uint8_t* from[Config::kRowTiles];
#pragma unroll
    for (int r = 0; r < Config::kRowTiles; ++r) {
      const int row_tile = ExistingTile(tile.row_tile + r, job.row_tiles);
      if constexpr (kExpanded) {
        from[r] = job.expanded + int64_t{row_tile} * job.slice_count * ring.weight_bytes;
        WaitForRowTile(job, row_tile);
      } else {
        from[r] = job.slices + int64_t{row_tile} * ring.weight_bytes;
      }
    }
    for (int slice = 0; slice < job.slice_count; ++slice) {
      const uint32_t full = ring.full + at.stage * 8;
      BarrierWait(ring.empty + at.stage * 8, at.phase ^ 1);
      BarrierArriveExpect(full, bytes);
      const uint32_t x = ring.x + at.stage * Config::kXBytes + rank * part * kSliceCols;
      const int token = tile.first_token + rank * part;
      if (plan.cluster == 1) {
        TensorLoad(x, &args.x, slice * kSliceCols, token, full);
      } else {
        TensorLoadMulticast(x, &args.x, slice * kSliceCols, token, full, everyone);
      }
#pragma unroll
      for (int r = 0; r < Config::kRowTiles; ++r) {
        BulkLoad(ring.weights + (at.stage * Config::kRowTiles + r) * ring.weight_bytes, from[r],
                 ring.weight_bytes, full);
        from[r] += slice_stride;
      }
      at.Advance(1, ring.stages);
    }
  }
}

template <class Config>
__device__ void Consume(const WideArguments& args, const WideRing& ring, uint32_t base,
                        int cluster_index, int rank) {
  const WidePlan& plan = args.plan;
  const int slices = args.expand.slice_count;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const EpilogueShared staging = {
      base + args.shared.staging,
      base + args.shared.small + kFoldTableBytes + warpgroup * Config::kTokens * 4};
  Multiplier<Config> multiplier{ring,
                                base + static_cast<uint32_t>(args.shared.small),
                                args.expand.group_shift,
                                thread,
                                warpgroup,
                                plan.cluster};
  // Of the slices 0.. of a tile this warpgroup has `first`, first + kSliceStep, ...
  const int first = Config::kRowTiles == 1 ? warpgroup : 0;
  const int own = (slices - first + Config::kSliceStep - 1) / Config::kSliceStep;
  RingPosition tile_at;
  for (int index = cluster_index; index < plan.tiles(); index += plan.clusters) {
    const BlockTile tile = BlockTileAt(plan, index, rank);
    const int row_tile = tile.row_tile + (Config::kRowTiles == 1 ? 0 : warpgroup);
    Epilogue<Config> epilogue(args.output, staging,
                              {row_tile, args.expand.row_tiles, tile.first_token}, warpgroup,
                              thread);
    RingPosition at = tile_at;
    if (first > 0) at.Advance(first, ring.stages);
    if (own > 0) {
      multiplier.Run(at, own);
    } else {
      multiplier.Clear();
    }
    epilogue.Store(multiplier.Sums());
    for (int left = slices; left > 0; left -= ring.stages) {
      tile_at.Advance(left < ring.stages ? left : ring.stages, ring.stages);
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kWideThreads, 1)
    WideKernel(const __grid_constant__ WideArguments args) {
  extern __shared__ uint8_t dynamic[];
  const uint32_t base = (SharedAddress(dynamic) + kSharedAlignment - 1) & ~(kSharedAlignment - 1);
  const WideShared& shared = args.shared;
  const WideRing ring = {
      base,
      base + shared.weights,
      base + shared.barriers,
      base + shared.barriers + args.plan.stages * 8,
      args.plan.stages,
      Config::kSource == WideSource::kExpanded ? ExpandedSliceBytes() : args.expand.slice_bytes};
  const int cluster = args.plan.cluster;
  const int rank = cluster == 1 ? 0 : static_cast<int>(ClusterRank());
  const int cluster_index = static_cast<int>(blockIdx.x) / cluster;
  const int warp = static_cast<int>(threadIdx.x) / 32;

  if (threadIdx.x == 0) {
    PrefetchTensorMap(&args.x);
    // Warps that release a stage: of the one warpgroup that has the slice, or of both.
    const int warps = cluster * (Config::kRowTiles == 1 ? 4 : 8);
    for (int stage = 0; stage < ring.stages; ++stage) {
      BarrierInit(ring.full + stage * 8, 1);
      BarrierInit(ring.empty + stage * 8, warps);
    }
    FenceBarrierInit();
  }
  if (threadIdx.x < kFoldTables) {
    const FoldTable& table = args.tables.by_k[threadIdx.x];
    SharedStore8(base + shared.small + threadIdx.x * 8, make_uint2(table.low, table.high));
  }
  __syncthreads();
  ClusterArrive();
  ClusterWait();
  WaitForEarlierGrids();

  if (warp < 4) {
    ReleaseRegisters<kProducerRegisters>();
    if (warp == 0) {
      if (threadIdx.x == 0) Produce<Config>(args, ring, cluster_index, rank);
    } else if (Config::kSource == WideSource::kExpanded) {
      ExpandWeights<Config::kFine>(args.expand, base + shared.small,
                                   static_cast<int>(blockIdx.x) * 3 + warp - 1,
                                   static_cast<int>(gridDim.x) * 3);
    }
  } else {
    AcquireRegisters<kConsumerRegisters>();
    Consume<Config>(args, ring, base, cluster_index, rank);
  }
  // Blocks of the cluster still write to this one's shared memory until all are here.
  __syncwarp();
  ClusterArrive();
  ClusterWait();
  if (Config::kSource == WideSource::kExpanded && threadIdx.x == 0) EndExpansion(args.expand);
}

}  // namespace nibble::w4a8
