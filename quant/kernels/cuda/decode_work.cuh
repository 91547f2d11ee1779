// What a block of decode attention works at, and how its warps fetch the pages of it.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "quant/kernels/cuda/decode_pages.cuh"
#include "quant/kernels/cuda/mma.cuh"

namespace nibble {
namespace {

constexpr int kParts = 4;  // of a chunk's pages

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

}  // namespace
}  // namespace nibble
