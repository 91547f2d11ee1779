// Expanding every 4-bit code of a matrix once, to the E4M3 bytes of wgmma's A fragments in scratch
// memory, by warps that have nothing else to do. Row tiles become ready in order; each has a
// counter of its expanded slices.
#pragma once

#include "quant/kernels/cuda/w4a8/dequant.cuh"
#include "quant/kernels/cuda/w4a8/layout.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/wide_plan.h"

namespace nibble::w4a8 {

struct ExpandJob {
  const uint8_t* slices;  // kFolded: [slice][row tile][slice_bytes]
  uint8_t* expanded;      // [row tile][slice][4 k-steps][128 threads][16 B]
  uint32_t* counters;     // [0]: blocks that have ended; [1 + row tile]: slices that are expanded
  int row_tiles;
  int slice_count;
  int slice_bytes;
  int group_shift;  // log2(group size / 16), groups of a slice and more: 3
};

// The fold tables of one row pair for 16 columns.
__device__ __forceinline__ void LoadTables(const uint8_t* scale, uint32_t tables,
                                           uint2 (&table)[2]) {
  const uint32_t k = __ldg(scale);
  table[0] = SharedLoad8(tables + (k & 15) * 8);
  table[1] = SharedLoad8(tables + (k >> 4) * 8);
}

// One warp's share of one slice: a band of 16 rows.
template <bool kFine>
__device__ __forceinline__ void ExpandBand(const uint8_t* slice, uint8_t* out, int thread,
                                           int group_shift, uint32_t tables) {
  uint4 words[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    words[half] = __ldg(reinterpret_cast<const uint4*>(slice + half * 2048 + thread * 16));
  }
  const uint8_t* scales = slice + CodeBytes(Kind::kFolded) + thread / 32 * 8 + thread % 32 / 4;
  uint2 table[2][2];  // [upper][row half]
  if (!kFine) LoadTables(scales, tables, table[0]);
#pragma unroll
  for (int step = 0; step < kSliceCols / kStepCols; ++step) {
    if (kFine) {
      LoadTables(scales + (2 * step >> group_shift) * kTilePairs, tables, table[0]);
      LoadTables(scales + ((2 * step + 1) >> group_shift) * kTilePairs, tables, table[1]);
    }
    const uint2(&upper)[2] = table[kFine ? 1 : 0];
    const uint4& pair = words[step / 2];
    uint4 a;
    ExpandWord(step % 2 == 0 ? pair.x : pair.z, table[0][0], upper[0], a.x, a.z);
    ExpandWord(step % 2 == 0 ? pair.y : pair.w, table[0][1], upper[1], a.y, a.w);
    *reinterpret_cast<uint4*>(out + (step * 128 + thread) * 16) = a;
  }
}

// The share of warp `worker` of `workers`. `tables`: FoldTables in shared memory. kFine: groups are
// smaller than a slice.
template <bool kFine>
__device__ __forceinline__ void ExpandWeights(const ExpandJob& job, uint32_t tables, int worker,
                                              int workers) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int units = job.row_tiles * job.slice_count;
  for (int unit = worker; unit < units; unit += workers) {
    const int64_t index = SliceIndex(unit % job.slice_count, unit / job.slice_count, job.row_tiles);
    const uint8_t* slice = job.slices + index * job.slice_bytes;
    uint8_t* out = job.expanded + int64_t{unit} * ExpandedSliceBytes();
#pragma unroll
    for (int band = 0; band < kTileRows / kBandRows; ++band) {
      ExpandBand<kFine>(slice, out, band * 32 + lane, job.group_shift, tables);
    }
    FenceAsyncGlobal();
    __syncwarp();
    if (lane == 0) ReleaseAdd(&job.counters[1 + unit / job.slice_count], 1);
  }
}

// Until the copy engine may read the row tile's expanded slices.
__device__ __forceinline__ void WaitForRowTile(const ExpandJob& job, int row_tile) {
  const uint32_t* counter = &job.counters[1 + row_tile];
  while (AcquireLoad(counter) < static_cast<uint32_t>(job.slice_count)) __nanosleep(100);
  FenceAsyncGlobal();
}

// By one thread of each block, after the block's last look at a counter: the last block leaves them
// all zero, as the next launch needs them.
__device__ inline void EndExpansion(const ExpandJob& job) {
  if (atomicAdd(&job.counters[0], 1) + 1 < gridDim.x) return;
  for (int i = 0; i <= job.row_tiles; ++i) job.counters[i] = 0;
}

}  // namespace nibble::w4a8
