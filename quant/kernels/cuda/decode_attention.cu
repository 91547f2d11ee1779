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
#include "quant/kernels/cuda/mma.cuh"
#include "quant/kernels/cuda/overlap.cuh"

namespace nibble {
namespace {

constexpr int kWarps = 4;
constexpr int kParts = 4;              // of a chunk's pages
constexpr int kMultiprocessors = 132;  // of an H100 or H200: how much work fills it
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNone = -1e30f;  // below every score

// The plan and tensors as the kernel reads them.
struct DecodeShape {
  const int32_t* sequence_partial;
  const int32_t* pages;
  const int32_t* work_sequence;
  const int32_t* work_tile;
  const int32_t* work_chunk;
  const int32_t* work_keys;
  const uint8_t* work_valid;
  const int32_t* work_query;
  const int32_t* work_queries;
  const int32_t* work_length;
  const int32_t* work_page;
  const __nv_bfloat16* q;  // [tokens, heads, dim]
  const uint8_t* k;        // [pages, 16, kv_heads, dim]
  const uint8_t* v;
  float* values;    // [partials, heads, dim]
  float* log_sums;  // [partials, heads]
  int group;
  int kv_heads;
  int tile_rows;
  float score_scale;  // of q k, into the exponent of 2
  float value_scale;
};

// This block's piece of the step's work.
struct Work {
  int sequence, tile, chunk, keys;  // keys in a full chunk
  int first_token, queries, length;
  int first_key, last_key;  // of the chunk, in the sequence; the last exclusive
  const int32_t* pages;     // of the chunk

  __device__ explicit Work(const DecodeShape& shape)
      : sequence(shape.work_sequence[blockIdx.y]),
        tile(shape.work_tile[blockIdx.y]),
        chunk(shape.work_chunk[blockIdx.y]),
        keys(shape.work_keys[blockIdx.y]),
        first_token(shape.work_query[blockIdx.y]),
        queries(shape.work_queries[blockIdx.y]),
        length(shape.work_length[blockIdx.y]),
        first_key(chunk * keys),
        last_key(min(first_key + keys, length)),
        pages(shape.pages + shape.work_page[blockIdx.y]) {}

  __device__ int page_count() const { return (last_key - first_key + kPageKeys - 1) / kPageKeys; }
  __device__ bool HasRow(const DecodeShape& shape, int row) const {
    return tile * shape.tile_rows + row < queries * shape.group;
  }
  // Keys that a row sees: those before this one.
  __device__ int SeenBy(const DecodeShape& shape, int row) const {
    return length - queries + (tile * shape.tile_rows + row) / shape.group + 1;
  }
};

// One warp's copies of its pages into shared memory at `base`: stages of keys and values.
template <class Page>
class PageRing {
 public:
  static constexpr int kStages = Page::kWarpBytes / (2 * Page::kBytes);

  __device__ PageRing(const DecodeShape& shape, const Work& work, int head, uint32_t base)
      : shape_(shape), work_(work), head_(head), base_(base) {}

  // Page `page` of the chunk into `stage`, keys and values; nothing below 0.
  __device__ void Fetch(int page, int stage) const {
    if (page >= 0) {
      const int64_t slot = int64_t{work_.pages[page]} * kPageKeys;
      const int there = work_.last_key - work_.first_key - page * kPageKeys;
      constexpr int kPieces = Page::kPieces;  // of 16 bytes, of a row
#pragma unroll
      for (int i = 0; i < kPageKeys * kPieces / 32; ++i) {
        const int at = i * 32 + Lane();
        const int row = at / kPieces;
        const int piece = at % kPieces;
        const int64_t from = (((slot + row) * shape_.kv_heads + head_) * kPieces + piece) * 16;
        const int bytes = row < there ? 16 : 0;
        CopyAsync16(K(stage) + Page::KeyPlace(row, piece), shape_.k + from, bytes);
        CopyAsync16(V(stage) + Page::ValuePlace(row, piece), shape_.v + from, bytes);
      }
    }
    CommitCopies();
  }
  __device__ uint32_t K(int stage) const { return base_ + stage * 2 * Page::kBytes; }
  __device__ uint32_t V(int stage) const { return K(stage) + Page::kBytes; }

 private:
  const DecodeShape& shape_;
  const Work& work_;
  const int head_;
  const uint32_t base_;
};

// A warp's pages in its order: those of its parts, one after the other.
struct PageOrder {
  int part;
  int end;    // of its parts
  int count;  // pages of the chunk
  int page;   // -1: none is left

  __device__ PageOrder(int first, int parts, int pages)
      : part(first), end(first + parts), count(pages), page(first < pages ? first : -1) {}
  __device__ void Next() {
    if (page < 0) return;
    page += kParts;
    if (page < count) return;
    page = ++part < min(end, count) ? part : -1;
  }
};

template <class Number>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<Number, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// Attention of one warp over some pages: the running softmax of flash attention.
template <class Page, int kDim, int kColumnTiles>
class WarpAttention {
 public:
  using Number = typename Page::Number;
  static constexpr int kSteps = kDim / 16;

  // No keys seen.
  __device__ void Clear() {
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest_[t][i] = kNone;
        weight_[t][i] = 0;
      }
#pragma unroll
      for (auto& sums : out_[t]) sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }
  }

  // After the queries are there.
  __device__ void LoadQueries(const DecodeShape& shape, const Work& work, int kv_head) {
    const int heads = shape.group * shape.kv_heads;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      const int row = t * 8 + lane_ / 4;
      const int of_sequence = work.tile * shape.tile_rows + row;
      const bool there = work.HasRow(shape, row);
      const int64_t token = work.first_token + (there ? of_sequence / shape.group : 0);
      const int head = kv_head * shape.group + of_sequence % shape.group;
      const __nv_bfloat16* q = shape.q + (token * heads + (there ? head : 0)) * kDim;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 pair = __bfloat1622float2(
              *reinterpret_cast<const __nv_bfloat162*>(q + Page::QueryDim(s, half)));
          q_[t][s][half] = there ? Pack<Number>(pair.x, pair.y) : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) seen_[t][i] = work.SeenBy(shape, t * 8 + lane_ % 4 * 2 + i);
    }
  }

  // `first_key`: of the page, in the sequence.
  __device__ void AddPage(uint32_t k, uint32_t v, int first_key, float score_scale) {
    const typename Page::Keys page_keys(k);
    float scores[kColumnTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint32_t keys[4];
      page_keys.Get(s, keys);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) MultiplyAdd<Number>(scores[t], keys, q_[t][s]);
    }
    uint32_t p[kColumnTiles][2];
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) Soften(scores[t], t, first_key, score_scale, p[t]);
    const typename Page::Values page_values(v);
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      uint32_t values[4];
      page_values.Get(d, values);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) MultiplyAdd<Number>(out_[t][d], values, p[t]);
    }
  }

  // Leaves, for each of the tile's first `rows` rows, its sums, its largest score and its weight at
  // `merge`: [row][kDim + 2] f32.
  __device__ void Store(float* merge, int rows) {
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float weight = weight_[t][i];
        for (int apart = 4; apart < 32; apart *= 2) {
          weight += __shfl_xor_sync(0xffffffffu, weight, apart);
        }
        const int at = t * 8 + lane_ % 4 * 2 + i;
        if (at >= rows) continue;
        float* row = merge + at * (kDim + 2);
#pragma unroll
        for (int d = 0; d < kSteps; ++d) {
          row[Page::SumDim(d, 0)] = out_[t][d][i];
          row[Page::SumDim(d, 1)] = out_[t][d][2 + i];
        }
        if (lane_ < 4) {
          row[kDim] = largest_[t][i];
          row[kDim + 1] = weight;
        }
      }
    }
  }

 private:
  // Scores of 16 keys and 8 rows to weights, packed as the next product's B; what was summed before
  // is scaled to the new largest score.
  __device__ void Soften(float (&scores)[4], int t, int first_key, float score_scale,
                         uint32_t (&p)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = largest_[t][i];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[2 * half + i];
        score *= score_scale;
        if (first_key + half * 8 + lane_ / 4 >= seen_[t][i]) score = 2 * kNone;
        largest = fmaxf(largest, score);
      }
      for (int apart = 4; apart < 32; apart *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
      }
      const float shrink = exp2f(largest_[t][i] - largest);
      largest_[t][i] = largest;
      weight_[t][i] *= shrink;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[2 * half + i];
        score = exp2f(score - largest);
        weight_[t][i] += score;
      }
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        out_[t][d][i] *= shrink;
        out_[t][d][2 + i] *= shrink;
      }
    }
    p[0] = Transpose(Pack<Number>(scores[0], scores[1]));
    p[1] = Transpose(Pack<Number>(scores[2], scores[3]));
  }

  const int lane_ = Lane();
  uint32_t q_[kColumnTiles][kSteps][2];
  int seen_[kColumnTiles][2];
  float largest_[kColumnTiles][2];
  float weight_[kColumnTiles][2];  // of this lane's keys
  float out_[kColumnTiles][kSteps][4];
};

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
