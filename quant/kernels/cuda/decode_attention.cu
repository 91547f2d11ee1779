// Decode attention reads every key and value once and does little with them: what counts is to have
// many of them under way. A block has one tile of 8 or 16 rows (TileRows) and one
// chunk of keys. Each of its warps goes through pages of its own, four apart, through a ring of
// copies of its own, waits for no other warp, and keeps its own softmax; the four are merged at the
// end. Keys and values are the tensor cores' A, so that a page of 16 keys is one of its heights:
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

  __device__ PageRing(const DecodeShape& shape, const Work& work, uint32_t base)
      : shape_(shape), work_(work), base_(base) {}

  // Page `page` of the chunk into `stage`, keys and values; nothing beyond the last.
  __device__ void Fetch(int page, int stage) const {
    if (page < work_.page_count()) {
      const int64_t slot = int64_t{work_.pages[page]} * kPageKeys;
      const int there = work_.last_key - work_.first_key - page * kPageKeys;
      constexpr int kPieces = Page::kPieces;  // of 16 bytes, of a row
#pragma unroll
      for (int i = 0; i < kPageKeys * kPieces / 32; ++i) {
        const int at = i * 32 + Lane();
        const int row = at / kPieces;
        const int piece = at % kPieces;
        const int64_t from = (((slot + row) * shape_.kv_heads + blockIdx.x) * kPieces + piece) * 16;
        CopyAsync16(K(stage) + Page::KeyPlace(row, piece), shape_.k + from, row < there);
        CopyAsync16(V(stage) + Page::ValuePlace(row, piece), shape_.v + from, row < there);
      }
    }
    CommitCopies();
  }
  __device__ uint32_t K(int stage) const { return base_ + stage * 2 * Page::kBytes; }
  __device__ uint32_t V(int stage) const { return K(stage) + Page::kBytes; }

 private:
  const DecodeShape& shape_;
  const Work& work_;
  const uint32_t base_;
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

  __device__ WarpAttention() {
#pragma unroll
    for (auto& of_tile : largest_) of_tile[0] = of_tile[1] = kNone;
  }

  // After the queries are there.
  __device__ void LoadQueries(const DecodeShape& shape, const Work& work) {
    const int heads = shape.group * shape.kv_heads;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      const int row = t * 8 + lane_ / 4;
      const int of_sequence = work.tile * shape.tile_rows + row;
      const bool there = work.HasRow(shape, row);
      const int64_t token = work.first_token + (there ? of_sequence / shape.group : 0);
      const int head = static_cast<int>(blockIdx.x) * shape.group + of_sequence % shape.group;
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

  // Leaves, for each row of the tile, its sums, its largest score and its weight at `merge`:
  // [row][kDim + 2] f32.
  __device__ void Store(float* merge) {
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float weight = weight_[t][i];
        for (int apart = 4; apart < 32; apart *= 2) {
          weight += __shfl_xor_sync(0xffffffffu, weight, apart);
        }
        float* row = merge + (t * 8 + lane_ % 4 * 2 + i) * (kDim + 2);
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
  float weight_[kColumnTiles][2] = {};  // of this lane's keys
  float out_[kColumnTiles][kSteps][4] = {};
};

// Writes the partial result of the tile's rows from what the warps have stored.
template <int kDim, int kTileRows>
__device__ void WritePartials(const DecodeShape& shape, const Work& work, const float* merge) {
  constexpr int kPitch = kDim + 2;
  const int chunks = (work.length + work.keys - 1) / work.keys;
  const int heads = shape.group * shape.kv_heads;
  for (int row = 0; row < kTileRows && work.HasRow(shape, row); ++row) {
    const int of_sequence = work.tile * shape.tile_rows + row;
    const int64_t partial =
        shape.sequence_partial[work.sequence] + of_sequence / shape.group * chunks + work.chunk;
    const int64_t at = partial * heads + blockIdx.x * shape.group + of_sequence % shape.group;
    float largest = kNone;
    for (int w = 0; w < kWarps; ++w) {
      largest = fmaxf(largest, merge[(w * kTileRows + row) * kPitch + kDim]);
    }
    float weight = 0;
    float value = 0;
    const int column = static_cast<int>(threadIdx.x);
    for (int w = 0; w < kWarps; ++w) {
      const float* of_warp = merge + (w * kTileRows + row) * kPitch;
      const float share = exp2f(of_warp[kDim] - largest);
      weight += share * of_warp[kDim + 1];
      if (column < kDim) value += share * of_warp[column];
    }
    if (column < kDim) {
      shape.values[at * kDim + column] = weight > 0 ? value / weight * shape.value_scale : 0;
    }
    if (column == 0) shape.log_sums[at] = weight > 0 ? largest + log2f(weight) : -INFINITY;
  }
}

template <class Page, int kDim, int kColumnTiles>
__global__ void __launch_bounds__(kWarps * 32, kColumnTiles == 1 ? Page::kBlocks : 3)
    DecodeAttentionKernel(const __grid_constant__ DecodeShape shape) {
  using Pages = PageRing<Page>;
  extern __shared__ __align__(128) uint8_t shared[];
  LetNextKernelStart();
  if (shape.work_valid[blockIdx.y] == 0) return;
  const Work work(shape);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const Pages ring(shape, work, base + warp * Page::kWarpBytes);
  // Keys of this step's tokens come from the kernel before.
  const int old_pages = max(work.length - work.queries - work.first_key, 0) / kPageKeys;
  int fetched = 0;
  for (; fetched < Pages::kStages && warp + fetched * kWarps < old_pages; ++fetched) {
    ring.Fetch(warp + fetched * kWarps, fetched);
  }
  WaitForEarlierKernels();
  for (; fetched < Pages::kStages; ++fetched) ring.Fetch(warp + fetched * kWarps, fetched);

  WarpAttention<Page, kDim, kColumnTiles> attention;
  attention.LoadQueries(shape, work);
  int stage = 0;
  for (int page = warp; page < work.page_count(); page += kWarps) {
    AwaitCopies<Pages::kStages - 1>();
    __syncwarp();
    attention.AddPage(ring.K(stage), ring.V(stage), work.first_key + page * kPageKeys,
                      shape.score_scale);
    __syncwarp();
    ring.Fetch(page + Pages::kStages * kWarps, stage);
    stage = stage + 1 == Pages::kStages ? 0 : stage + 1;
  }
  AwaitCopies<0>();
  __syncthreads();  // the rings become the place of merging
  float* merge = reinterpret_cast<float*>(shared);
  attention.Store(merge + warp * kColumnTiles * 8 * (kDim + 2));
  __syncthreads();
  WritePartials<kDim, kColumnTiles * 8>(shape, work, merge);
}

template <class Page, int kDim, int kColumnTiles>
absl::Status LaunchTiles(const DecodeShape& shape, int work, cudaStream_t stream) {
  const auto kernel = DecodeAttentionKernel<Page, kDim, kColumnTiles>;
  constexpr int kShared = kWarps * Page::kWarpBytes;
  static_assert(kShared >= kWarps * kColumnTiles * 8 * (kDim + 2) * 4);  // for merging
  NIBBLE_RETURN_IF_ERROR(
      CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                "decode attention's shared memory"));
  return LaunchOverlapped("DecodeAttention", kernel,
                          dim3(static_cast<unsigned>(shape.kv_heads), static_cast<unsigned>(work)),
                          dim3(kWarps * 32), kShared, stream, shape);
}

template <class Page, int kDim>
absl::Status LaunchDecode(const DecodeShape& shape, int work, cudaStream_t stream) {
  return shape.tile_rows == 8 ? LaunchTiles<Page, kDim, 1>(shape, work, stream)
                              : LaunchTiles<Page, kDim, 2>(shape, work, stream);
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
