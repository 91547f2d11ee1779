// What becomes of the sums after the last slice: the parts of K meet (split-K), and their total is
// y. Blocks of a cluster reduce and scatter through distributed shared memory.
//
// Sums move as octets, those of one row tile and eight tokens: four floats of each thread t of a
// warpgroup, row RowOf(t, 0) of tokens 2 (t % 4) and + 1, then row RowOf(t, 1) of the same. Within
// a block, the warpgroup of part p gathers octets p, p + k_groups, .. of its tile. It then sends
// them to the block of the cluster that owns the octet, whose barrier counts what comes. No block
// reads another's memory, so none waits for another to end.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "quant/kernels/cuda/mma.cuh"
#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_block.cuh"
#include "quant/kernels/cuda/w4a8/decode_product.cuh"
#include "quant/kernels/cuda/w4a8/ptx.cuh"
#include "quant/kernels/cuda/w4a8/store.cuh"

namespace nibble::w4a8 {

// The sum of leaf(first), .. leaf(first + kLeaves - 1), as a balanced binary tree.
template <int kLeaves, class Leaf>
__device__ __forceinline__ float4 AddTree(int first, const Leaf& leaf) {
  if constexpr (kLeaves == 1) {
    return leaf(first);
  } else {
    const float4 a = AddTree<kLeaves / 2>(first, leaf);
    const float4 b = AddTree<kLeaves / 2>(first + kLeaves / 2, leaf);
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }
}

template <class Leaf>
__device__ __forceinline__ float4 AddTree(int leaves, const Leaf& leaf) {
  switch (leaves) {
    case 1:
      return leaf(0);
    case 2:
      return AddTree<2>(0, leaf);
    case 4:
      return AddTree<4>(0, leaf);
    default:
      return AddTree<8>(0, leaf);
  }
}

// The sums of one warpgroup, those of a row tile and a part of K, on their way to y. Loops over
// octets are short code rather than unrolled: each block runs them once, from memory.
template <int kTokens>
class PartSums {
 public:
  // `parts` and `staging` as in DecodeShared.
  __device__ PartSums(const DecodeArguments& args, const DecodeBlock& block,
                      const DecodeSmall& small, uint32_t parts, uint32_t staging, int tile,
                      int part, int thread)
      : args_(args),
        plan_(args.plan),
        block_(block),
        small_(small),
        parts_(parts),
        staging_(staging + (part * args.plan.tiles + tile) * kTokens * kTileRows * 2),
        owned_(args.plan.owned_octets()),
        tile_(tile),
        part_(part),
        thread_(thread) {}

  // Leaves them to the block's other warpgroups, once all have done with the ring.
  __device__ __forceinline__ void Leave(const Sums<kTokens>& sums) const {
    const int threads = plan_.warpgroups() * 128;
    NamedBarrier(kWarpgroupsBarrier, threads);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      SharedStore16(Part(part_, octet), {sums[4 * octet], sums[4 * octet + 1], sums[4 * octet + 2],
                                         sums[4 * octet + 3]});
    }
    if (plan_.k_groups > 1) NamedBarrier(kWarpgroupsBarrier, threads);
  }

  // Adds the block's parts of this warpgroup's octets; what others own is sent to them.
  __device__ __forceinline__ void Gather() const {
    if (plan_.splits > 1) ClusterWait();  // until all its blocks have set up their barriers
#pragma unroll 1
    for (int octet = part_; octet * 8 < args_.tokens; octet += plan_.k_groups) {
      const float4 v = AddTree(plan_.k_groups,
                               [&](int part) { return AsFloats(SharedLoad16(Part(part, octet))); });
      const int owner = Owner(octet);
      if (owner == block_.split) {
        SharedStore16(Part(part_, octet), v);
      } else {
        ClusterStore16(ClusterAddress(Received(block_.split, owner, octet), owner), v,
                       ClusterAddress(small_.received_barrier, owner));
      }
    }
  }

  // y of the octets that this block owns.
  __device__ __forceinline__ void Write(const RowTile& place) const {
    if (plan_.splits > 1) BarrierWaitCluster(small_.received_barrier, 0);
#pragma unroll 1
    for (int octet = part_; octet * 8 < args_.tokens; octet += plan_.k_groups) {
      if (Owner(octet) != block_.split) continue;
      const float4 v = Scale(
          octet, AddTree(plan_.splits, [&](int split) {
            return AsFloats(SharedLoad16(
                split == block_.split ? Part(part_, octet) : Received(split, block_.split, octet)));
          }));
      if (args_.y_f32 != nullptr) {
        StoreF32(place, octet, v);
      } else if constexpr (kStaged) {
        Stage(octet, v);
      } else {
        StorePairs(place, octet, v);
      }
    }
    if (!kStaged || args_.y_f32 != nullptr) return;
    NamedBarrier(2 + part_ * plan_.tiles + tile_, 128);
    StoreStaged(place);
  }

 private:
  static constexpr int kOctets = kTokens / 8;
  // An octet alone goes to y as it is.
  static constexpr bool kStaged = kOctets > 1;

  // octet / owned_.
  __device__ int Owner(int octet) const {
    return plan_.splits < kOctets ? octet * plan_.splits / kOctets : octet;
  }
  __device__ uint32_t Part(int part, int octet) const {
    return parts_ + ((tile_ * plan_.k_groups + part) * kOctets + octet) * kOctetBytes +
           thread_ * 16;
  }
  // Where `owner` has the octet of block `from`.
  __device__ uint32_t Received(int from, int owner, int octet) const {
    const int slot = from - (from > owner ? 1 : 0);
    return small_.received +
           ((slot * plan_.tiles + tile_) * owned_ + octet - owner * owned_) * kOctetBytes +
           thread_ * 16;
  }

  // The products of an octet times the tokens' scales, plus the bias.
  __device__ __forceinline__ float4 Scale(int octet, const float4& v) const {
    const uint2 scales = SharedLoad8(small_.x_scale + (octet * 8 + thread_ % 4 * 2) * 4);
    const float2 scale = {__uint_as_float(scales.x), __uint_as_float(scales.y)};
    float2 bias = {};
    if (args_.weights.bias != nullptr) {
      const uint32_t at = small_.bias + tile_ * kTileRows * 2;
      bias = {__uint_as_float(SharedLoad2(at + RowOf(thread_, 0) * 2) << 16),
              __uint_as_float(SharedLoad2(at + RowOf(thread_, 1) * 2) << 16)};
    }
    return {v.x * scale.x + bias.x, v.y * scale.y + bias.x, v.z * scale.x + bias.y,
            v.w * scale.y + bias.y};
  }

  __device__ void StoreF32(const RowTile& place, int octet, const float4& v) const {
    const float values[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; ++i) {
      const int row = RowOf(thread_, i / 2);
      const int token = octet * 8 + thread_ % 4 * 2 + i % 2;
      if (row >= place.rows || token >= args_.tokens) continue;
      args_.y_f32[int64_t{token} * args_.weights.rows + place.first_col + row] = values[i];
    }
  }

  __device__ __forceinline__ void StorePairs(const RowTile& place, int octet,
                                             const float4& v) const {
    const uint32_t pairs[2] = {Transpose(PackBf16(v.x, v.y)), Transpose(PackBf16(v.z, v.w))};
    const int token = octet * 8 + thread_ % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = thread_ / 32 * 16 + half * 8 + thread_ % 4 * 2;
      const int left = place.rows - row;
      if (token >= args_.tokens || left <= 0) continue;
      __nv_bfloat16* to = Y(place, token, row);
      if (left >= 2 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
        *reinterpret_cast<uint32_t*>(to) = pairs[half];
      } else {
        StoreSome(to, {pairs[half], 0, 0, 0}, min(left, 2));
      }
    }
  }

  // 16 bytes of a token's row in staging: bf16 of eight of the tile's rows.
  __device__ uint32_t StagingAt(int token, int piece) const {
    return staging_ + token * kTileRows * 2 + (piece ^ token % 8) * 16;
  }

  __device__ __forceinline__ void Stage(int octet, const float4& v) const {
    const int lane = thread_ % 32;
    const int piece = thread_ / 32 * 2 + lane / 8 % 2;
    SharedStoreTransposed(StagingAt(octet * 8 + lane % 8, piece), PackBf16(v.x, v.y),
                          PackBf16(v.z, v.w));
  }

  __device__ __forceinline__ void StoreStaged(const RowTile& place) const {
    const int piece = thread_ % 8;
    const int left = place.rows - piece * 8;
    if (left <= 0) return;
#pragma unroll 1
    for (int token = thread_ / 8; token < args_.tokens; token += 16) {
      const int octet = token / 8;
      if ((octet & (plan_.k_groups - 1)) != part_ || Owner(octet) != block_.split) continue;
      const uint4 eight = SharedLoad16(StagingAt(token, piece));
      __nv_bfloat16* to = Y(place, token, piece * 8);
      if (left >= 8 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
        *reinterpret_cast<uint4*>(to) = eight;
      } else {
        StoreSome(to, eight, min(left, 8));
      }
    }
  }

  __device__ __nv_bfloat16* Y(const RowTile& place, int token, int row) const {
    return args_.y + int64_t{token} * args_.weights.rows + place.first_col + row;
  }

  const DecodeArguments& args_;
  const DecodePlan& plan_;
  const DecodeBlock& block_;
  const DecodeSmall& small_;
  const uint32_t parts_;
  const uint32_t staging_;
  const int owned_;  // octets of each owner
  const int tile_;
  const int part_;
  const int thread_;
};

// Bytes that other blocks will send to this one.
__device__ __forceinline__ uint32_t ReceivedBytes(const DecodeArguments& args,
                                                  const DecodeBlock& block) {
  const int each = args.plan.owned_octets();
  const int octets = min(max((args.tokens + 7) / 8 - block.split * each, 0), each);
  return (args.plan.splits - 1) * block.tiles * octets * kOctetBytes;
}

}  // namespace nibble::w4a8
