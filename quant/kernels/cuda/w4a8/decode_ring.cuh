// The ring of slices in shared memory that a decode block's last warp fills, but for x of the first
// round, and its warpgroups empty.
#pragma once

#include <cstdint>

#include "quant/kernels/cuda/mma.cuh"
#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"

namespace nibble::w4a8 {

// Shared-memory addresses of a block; every stage holds one slice of x and of `tiles` row tiles.
struct Ring {
  int stages;
  int x_bytes;      // of a stage
  int slice_bytes;  // of one row tile
  int tiles;
  uint32_t x;
  uint32_t codes;
  uint32_t full;
  uint32_t empty;

  __device__ uint32_t X(int stage) const { return x + stage * x_bytes; }
  __device__ uint32_t Codes(int stage, int tile) const {
    return codes + (stage * tiles + tile) * slice_bytes;
  }
  __device__ uint32_t WeightBytes(int row_tiles) const { return row_tiles * slice_bytes; }
  __device__ uint32_t Full(int stage) const { return full + stage * 8; }
  __device__ uint32_t Empty(int stage) const { return empty + stage * 8; }
};

// A place in the sequence of stages, which goes round the ring.
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;  // its parity is the barriers'

  __device__ void Advance(int by, int stages) {
    stage += by;
    while (stage >= stages) {
      stage -= stages;
      round ^= 1;
    }
  }
};

// The slices that pass through a block's ring: step by step, and in each step one of each part.
struct SliceStream {
  const uint8_t* weights;  // slice 0 of the first row tile, followed by those of its neighbours
  int64_t slice_stride;    // bytes to the next slice of the same row tile
  int tiles;               // that exist; the ring's others are left as they are
  int parts;
  int part_slices;
  int first_slice;
  int slice_count;

  __device__ int Count() const { return parts * part_slices; }
  // Slices of a part that exist; the last part may have fewer.
  __device__ int CountOf(int part) const {
    return min(max(slice_count - first_slice - part * part_slices, 0), part_slices);
  }
  // Below 0: the part has fewer slices than others.
  __device__ int SliceOf(int step, int part) const {
    const int slice = first_slice + part * part_slices + step;
    return slice < slice_count ? slice : -1;
  }
  // The `i`th of the stream; parts are a power of two.
  __device__ int SliceAt(int i) const { return SliceOf(DivideByPower(i, parts), i & (parts - 1)); }
};

// Fills the ring, by one thread: in `Prologue` with weights as far as the ring reaches, whose x
// FetchFirstX brings and announces both, and in `Run` with weights and x of all later rounds, once
// earlier grids have ended.
class Producer {
 public:
  __device__ Producer(const SliceStream& stream, const Ring& ring, const CUtensorMap* x)
      : stream_(stream), ring_(ring), x_(x), policy_(EvictFirst()) {}

  __device__ void Prologue() {
    const int filled = min(ring_.stages, stream_.Count());
    for (int i = 0; i < filled; ++i) {
      const int slice = stream_.SliceAt(i);
      if (slice >= 0) LoadWeights(slice, i);
    }
  }

  __device__ void Run() {
    const int count = stream_.Count();
    RingPlace place;
    for (int i = min(ring_.stages, count); i < count; ++i) {
      const int slice = stream_.SliceAt(i);
      const uint32_t full = ring_.Full(place.stage);
      BarrierWait(ring_.Empty(place.stage), place.round);
      if (slice < 0) {
        BarrierArrive(full);
      } else {
        BarrierArriveExpect(full, ring_.WeightBytes(stream_.tiles) + ring_.x_bytes);
        LoadWeights(slice, place.stage);
        TensorLoad(ring_.X(place.stage), x_, slice * kSliceCols, 0, full);
      }
      place.Advance(1, ring_.stages);
    }
  }

 private:
  __device__ void LoadWeights(int slice, int stage) const {
    BulkLoad(ring_.Codes(stage, 0), stream_.weights + slice * stream_.slice_stride,
             ring_.WeightBytes(stream_.tiles), ring_.Full(stage), policy_);
  }

  const SliceStream& stream_;
  const Ring& ring_;
  const CUtensorMap* x_;
  uint64_t policy_;
};

// x of the ring's first round, once earlier grids have ended: warp `warp` of `warps` brings that of
// every `warps`th stage and announces the weights' bytes beside it, of which some may have come.
// The copy engine takes its orders one after the other: it would bring x only after all the weights
// asked for before. Rows beyond the tokens are left as they are; they make columns of the product
// that nobody reads.
__device__ __forceinline__ void FetchFirstX(const DecodeArguments& args, const SliceStream& stream,
                                            const Ring& ring, int warp, int warps) {
  constexpr int kPieces = kSliceCols / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int piece = lane % kPieces;
  const int filled = min(ring.stages, stream.Count());
  WaitForEarlierGrids();
  for (int stage = warp; stage < filled; stage += warps) {
    const int slice = stream.SliceAt(stage);
    if (slice >= 0) {
      const int col = slice * kSliceCols + piece * 16;
      const int bytes = min(max(args.cols - col, 0), 16);
      const uint8_t* from = args.x_rows + (bytes > 0 ? col : 0);
      for (int token = lane / kPieces; token < args.tokens; token += 32 / kPieces) {
        CopyAsync16(ring.X(stage) + token * kSliceCols + ((piece ^ token % 8) * 16),
                    from + token * args.x_pitch, bytes);
      }
    }
  }
  CommitCopies();
  AwaitCopies<0>();
  FenceAsyncShared();
  __syncwarp();
  for (int stage = warp; stage < filled; stage += warps) {
    const uint32_t bytes = stream.SliceAt(stage) < 0 ? 0 : ring.WeightBytes(stream.tiles);
    if (lane == 0) BarrierArriveExpect(ring.Full(stage), bytes);
  }
  __syncwarp();
}

// By every warp that has read a stage.
__device__ __forceinline__ void FreeStage(const Ring& ring, int stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(ring.Empty(stage));
}

// Calls product(stage) for each slice of `part`, when it has come; every warp frees its stage.
template <class Product>
__device__ __forceinline__ void Consume(const SliceStream& stream, const Ring& ring, int part,
                                        Product&& product) {
  RingPlace place;
  place.Advance(part, ring.stages);
  for (int step = 0; step < stream.part_slices; ++step) {
    BarrierWait(ring.Full(place.stage), place.round);
    if (stream.SliceOf(step, part) >= 0) product(place.stage);
    FreeStage(ring, place.stage);
    place.Advance(stream.parts, ring.stages);
  }
}

// The same for a product that reads its stage until the next product, or `finish`, has returned.
// The ring has room for two slices of every part (CompletePlan).
template <class Product, class Finish>
__device__ __forceinline__ void ConsumePipelined(const SliceStream& stream, const Ring& ring,
                                                 int part, Product&& product, Finish&& finish) {
  const int count = stream.CountOf(part);
  const uint32_t full = Opaque(ring.full);
  const uint32_t empty = Opaque(ring.empty);
  const bool frees = threadIdx.x % 32 == 0;
  int stage = part;
  uint32_t round = 0;
  uint32_t before = 0;
  const auto free = [&](uint32_t barrier) {
    __syncwarp();
    if (frees) BarrierArrive(barrier);
  };
  const auto advance = [&] {
    stage += stream.parts;
    const bool wraps = stage >= ring.stages;
    if (wraps) stage -= ring.stages;
    round ^= wraps ? 1 : 0;
  };
  for (int step = 0; step < count; ++step) {
    BarrierWait(full + stage * 8, round);
    product(stage);
    if (step > 0) free(before);
    before = empty + stage * 8;
    advance();
  }
  finish();
  if (count > 0) free(before);
  for (int step = count; step < stream.part_slices; ++step) {
    BarrierWait(full + stage * 8, round);
    free(empty + stage * 8);
    advance();
  }
}

}  // namespace nibble::w4a8
