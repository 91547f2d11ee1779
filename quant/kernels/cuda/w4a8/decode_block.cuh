// A block of the decode kernel: which weights are its, and what it keeps beside the ring.
#pragma once

#include <cstdint>

#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/ptx.cuh"

namespace nibble::w4a8 {

// Barrier among the warpgroups of a block, without the warp that loads.
inline constexpr int kWarpgroupsBarrier = 1;

// A block's place in the grid; LoRC blocks have none.
struct DecodeBlock {
  int first_tile;
  int tiles;  // that exist
  int split;

  __device__ explicit DecodeBlock(const DecodeArguments& args) {
    const int block = static_cast<int>(blockIdx.x) - args.plan.lorc_blocks();
    first_tile = DivideByPower(block, args.plan.splits) * args.plan.tiles;
    tiles = min(args.plan.tiles, static_cast<int>(args.weights.row_tiles) - first_tile);
    split = block & (args.plan.splits - 1);
  }
};

// Addresses beside the ring.
struct DecodeSmall {
  uint32_t tables;
  uint32_t x_scale;
  uint32_t row_scale;
  uint32_t bias;
  uint32_t factor;
  uint32_t t;
  uint32_t side;
  uint32_t received;
  uint32_t received_barrier;

  __device__ DecodeSmall(const DecodeArguments& args, uint32_t base)
      : tables(base + args.shared.small),
        x_scale(tables + kFoldTableBytes),
        row_scale(x_scale + args.plan.token_tile * 4),
        bias(row_scale + args.plan.tiles * kTileRows * 4),
        factor(base + args.shared.factor),
        t(base + args.shared.t),
        side(base + args.shared.barriers + 2 * args.plan.stages * 8),
        received(base + args.shared.received),
        received_barrier(side + 8) {}
};

}  // namespace nibble::w4a8
