// Decode attention reads every key and value once and does little with them: what counts is to have
// many of them under way. The pages of a chunk of keys make four parts, every fourth page each; a
// part has a softmax of its own, and the four are merged at the end. For a tile of 8 or 16 rows
// (TileRows), a block's four warps take a part each, or, where there is work enough, a head each
// and its parts one after the other: the same sums from a quarter of the blocks. A warp fetches its
// pages through a ring of its own and waits for no other.
// Keys and values are the tensor cores' A, so that a page of 16 keys is one of its heights:
//   scores[key][row] = K[key][dim] q[row][dim]^T,  out[dim][row] = V[key][dim]^T p[key][row]
// Pages of earlier steps are fetched before the kernels queued earlier have ended.
#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/decode_attention.h"
#include "quant/kernels/cuda/decode_pages.cuh"
#include "quant/kernels/cuda/decode_work.cuh"
#include "quant/kernels/cuda/mma.cuh"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/warp_attention.cuh"

namespace nibble {
namespace {

constexpr int kWarps = 4;
constexpr int kMultiprocessors = 132;  // of an H100 or H200: how much work fills it
constexpr float kLog2E = 1.4426950408889634f;

// Where the parts' results of one head lie: the last part's in the place of a ring that has been
// read, as all are where a block has one head.
struct MergePlace {
  float* first;
  float* last;
  int pitch;  // floats from part to part

  __device__ float* Of(int part) const { return part == kParts - 1 ? last : first + part * pitch; }
};

// Writes the partial result of the tile's first `rows` rows from what is stored of the parts, by
// `threads` threads.
template <int kDim>
__device__ void WritePartials(const DecodeShape& shape, const Work& work, int kv_head,
                              const MergePlace& merge, int rows, int thread, int threads) {
  const int chunks = (work.length + work.keys - 1) / work.keys;
  const int heads = shape.group * shape.kv_heads;
  const int parts = min(kParts, work.page_count());
  for (int row = 0; row < rows && work.HasRow(shape, row); ++row) {
    const int of_sequence = work.tile * shape.tile_rows + row;
    const int64_t partial =
        shape.sequence_partial[work.sequence] + of_sequence / shape.group * chunks + work.chunk;
    const int64_t at = partial * heads + kv_head * shape.group + of_sequence % shape.group;
    const float* of_part[kParts];
    float share[kParts];
    float largest = kNone;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      of_part[p] = merge.Of(p) + row * (kDim + 2);
      if (p < parts) largest = fmaxf(largest, of_part[p][kDim]);
    }
    float weight = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      share[p] = p < parts ? exp2f(of_part[p][kDim] - largest) : 0;
      if (p < parts) weight += share[p] * of_part[p][kDim + 1];
    }
    for (int column = thread; column < kDim; column += threads) {
      float value = 0;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        if (p < parts) value += share[p] * of_part[p][column];
      }
      shape.values[at * kDim + column] = weight > 0 ? value / weight * shape.value_scale : 0;
    }
    if (thread == 0) shape.log_sums[at] = weight > 0 ? largest + log2f(weight) : -INFINITY;
  }
}

// Floats that a warp of a block of several heads keeps of its head's parts but the last.
__host__ __device__ constexpr int KeptFloats(int dim, int group) {
  return (kParts - 1) * group * (dim + 2);
}

// Grid [kv_heads / kHeads, work].
template <class Page, int kDim, int kColumnTiles, int kHeads>
__global__ void __launch_bounds__(kWarps * 32, kColumnTiles == 1 ? Page::kBlocks : 3)
    DecodeAttentionKernel(const __grid_constant__ DecodeShape shape) {
  static_assert(kHeads == 1 || (kHeads == kWarps && kColumnTiles == 1));
  using Pages = PageRing<Page>;
  extern __shared__ __align__(128) uint8_t shared[];
  LetNextKernelStart();
  if (shape.work_valid[blockIdx.y] == 0) return;
  const Work work(shape);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.x) * kHeads + (kHeads > 1 ? warp : 0);
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const Pages ring(shape, work, head, base + warp * Page::kWarpBytes);
  constexpr int kWarpParts = kHeads > 1 ? kParts : 1;
  const int first_part = kHeads > 1 ? 0 : warp;
  // Keys of this step's tokens come from the kernel before.
  const int old_pages = max(work.length - work.queries - work.first_key, 0) / kPageKeys;
  PageOrder order(first_part, kWarpParts, work.page_count());
  int fetched = 0;
  for (; fetched < Pages::kStages && order.page < old_pages; ++fetched, order.Next()) {
    ring.Fetch(order.page, fetched);
  }
  WaitForEarlierKernels();
  for (; fetched < Pages::kStages; ++fetched, order.Next()) ring.Fetch(order.page, fetched);

  float* floats = reinterpret_cast<float*>(shared);
  const int rows = kHeads > 1 ? shape.group : kColumnTiles * 8;
  const int pitch = rows * (kDim + 2);
  float* rings_end = floats + kWarps * Page::kWarpBytes / 4;
  const MergePlace merge = kHeads > 1 ? MergePlace{rings_end + warp * KeptFloats(kDim, shape.group),
                                                   floats + warp * Page::kWarpBytes / 4, pitch}
                                      : MergePlace{floats, floats + (kParts - 1) * pitch, pitch};
  WarpAttention<Page, kDim, kColumnTiles> attention;
  attention.LoadQueries(shape, work, head);
  int stage = 0;
  for (int part = first_part; part < first_part + kWarpParts; ++part) {
    attention.Clear();
    for (int page = part; page < work.page_count(); page += kParts) {
      AwaitCopies<Pages::kStages - 1>();
      __syncwarp();
      attention.AddPage(ring.K(stage), ring.V(stage), work.first_key + page * kPageKeys,
                        shape.score_scale);
      __syncwarp();
      ring.Fetch(order.page, stage);
      order.Next();
      stage = stage + 1 == Pages::kStages ? 0 : stage + 1;
    }
    if (part == first_part + kWarpParts - 1) {
      AwaitCopies<0>();
      if constexpr (kHeads == 1) __syncthreads();  // the rings become the place of merging
    }
    attention.Store(merge.Of(part), rows);
  }
  if constexpr (kHeads == 1) {
    __syncthreads();
    WritePartials<kDim>(shape, work, head, merge, rows, static_cast<int>(threadIdx.x), kWarps * 32);
  } else {
    __syncwarp();
    WritePartials<kDim>(shape, work, head, merge, rows, Lane(), 32);
  }
}

template <class Page, int kDim, int kColumnTiles, int kHeads>
absl::Status LaunchHeads(const DecodeShape& shape, int work, cudaStream_t stream) {
  const auto kernel = DecodeAttentionKernel<Page, kDim, kColumnTiles, kHeads>;
  constexpr int kRings = kWarps * Page::kWarpBytes;
  static_assert(kRings >= kParts * kColumnTiles * 8 * (kDim + 2) * 4);  // for merging
  const int kept = kHeads > 1 ? kHeads * KeptFloats(kDim, shape.group) * 4 : 0;
  const int shared = kRings + kept;
  NIBBLE_RETURN_IF_ERROR(
      CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                "decode attention's shared memory"));
  return LaunchOverlapped(
      "DecodeAttention", kernel,
      dim3(static_cast<unsigned>(shape.kv_heads / kHeads), static_cast<unsigned>(work)),
      dim3(kWarps * 32), shared, stream, shape);
}

// One head a warp where that leaves every multiprocessor two blocks.
template <class Page, int kDim>
absl::Status LaunchDecode(const DecodeShape& shape, int work, cudaStream_t stream) {
  if (shape.tile_rows > 8) return LaunchHeads<Page, kDim, 2, 1>(shape, work, stream);
  const bool plenty = shape.kv_heads % kWarps == 0 &&
                      int64_t{shape.kv_heads / kWarps} * work >= 2 * kMultiprocessors;
  return plenty ? LaunchHeads<Page, kDim, 1, kWarps>(shape, work, stream)
                : LaunchHeads<Page, kDim, 1, 1>(shape, work, stream);
}

}  // namespace

absl::Status AttendDecode(const AttentionCall& call, const PartialResults& partials,
                          cudaStream_t stream) {
  const AttentionLimits& limits = call.plan.limits;
  if (call.kv.page_size != kPageKeys) {
    return absl::InvalidArgumentError(StrCat("decode attention: found pages of ", call.kv.page_size,
                                             " keys, expected ", kPageKeys));
  }
  const AttentionImage at(limits);
  const DecodeShape shape = {
      .sequence_partial = call.image + at.sequence_partial,
      .pages = call.image + at.pages,
      .work_sequence = call.image + at.work_sequence,
      .work_tile = call.image + at.work_tile,
      .work_chunk = call.image + at.work_chunk,
      .work_keys = call.image + at.work_keys,
      .work_valid = reinterpret_cast<const uint8_t*>(call.image + at.work_valid),
      .work_query = call.image + at.work_query,
      .work_queries = call.image + at.work_queries,
      .work_length = call.image + at.work_length,
      .work_page = call.image + at.work_page,
      .q = call.q,
      .k = static_cast<const uint8_t*>(call.kv.k),
      .v = static_cast<const uint8_t*>(call.kv.v),
      .values = partials.values,
      .log_sums = partials.log_sums,
      .group = limits.group,
      .kv_heads = limits.kv_heads,
      .tile_rows = TileRows(limits),
      .score_scale = kLog2E * call.kv.k_scale / std::sqrt(static_cast<float>(call.kv.head_dim)),
      .value_scale = call.kv.v_scale};
  const bool narrow = call.kv.format == KvFormat::kE4M3;
  if (StoredHeadDim(call.kv.head_dim) == 64) {
    return narrow ? LaunchDecode<NarrowPage<64>, 64>(shape, call.plan.work, stream)
                  : LaunchDecode<WidePage<64>, 64>(shape, call.plan.work, stream);
  }
  return narrow ? LaunchDecode<NarrowPage<128>, 128>(shape, call.plan.work, stream)
                : LaunchDecode<WidePage<128>, 128>(shape, call.plan.work, stream);
}

}  // namespace nibble
