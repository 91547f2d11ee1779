// The host's part of paged attention on a GPU: how one step's queries and keys are cut into work,
// laid out in one image that is copied to the device before the kernels of every layer (or a graph
// of them) run. Free of CUDA and LibTorch.
//
// Work is a tile of a sequence's queries (rows of (token, head within its group)) against a chunk
// of its keys; every chunk leaves a partial result per token, merged in order. In the decode regime
// a sequence's chunks depend on its own length alone, so that its result does not depend on the
// batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

// Decode: few tokens a sequence. Prefill: many.
enum class AttentionRegime : uint8_t { kDecode, kPrefill };

// What a plan's image has room for; fixed when buffers are allocated or a graph is captured.
struct AttentionLimits {
  AttentionRegime regime = AttentionRegime::kDecode;
  int32_t group = 1;  // query heads per key head
  int32_t kv_heads = 1;
  int32_t page_size = 16;  // tokens
  int32_t sequences = 0;
  int32_t tokens = 0;    // queries of all sequences
  int32_t pages = 0;     // of all sequences
  int32_t work = 0;      // tiles times chunks of all sequences
  int32_t partials = 0;  // tokens times chunks of all sequences
};

// One sequence of the step. Its queries are the last of its keys: with `length` keys, query i
// stands at position length - queries + i and sees the keys up to its own.
struct AttentionSequence {
  int32_t queries = 0;
  int32_t length = 0;                    // keys, this step's included
  absl::Span<const int32_t> pages = {};  // of positions 0 .. length - 1, in order; more are ignored
};

// Where the image's arrays lie, in int32 elements from its start.
struct AttentionImage {
  explicit AttentionImage(const AttentionLimits& limits);
  size_t bytes() const { return static_cast<size_t>(end) * sizeof(int32_t); }

  int64_t positions;  // [tokens] of each query in its sequence
  int64_t slots;      // [tokens] of each query in the cache: page * page_size + place; -1 unused
  int64_t partial_begin;     // [tokens + 1] first partial result of each query
  int64_t query_begin;       // [sequences + 1] first query
  int64_t sequence_partial;  // [sequences + 1] first partial result
  int64_t page_begin;        // [sequences + 1] first of its pages
  int64_t lengths;           // [sequences]
  int64_t pages;             // [pages]
  int64_t work_sequence;     // [work]
  int64_t work_tile;         // [work] of its sequence's rows
  int64_t work_chunk;        // [work] of its sequence's keys
  int64_t work_keys;         // [work] keys in a full chunk
  int64_t work_valid;        // [work] bytes, 1 where there is work
  // Decode regime, so that a block needs no second look-up: of each work's sequence
  int64_t work_query;    // [work] its first query
  int64_t work_queries;  // [work] its queries
  int64_t work_length;   // [work] its keys
  int64_t work_page;     // [work] the chunk's first page, in `pages`
  int64_t end;
};

// What was planned.
struct AttentionPlan {
  AttentionLimits limits;
  int32_t tokens = 0;
  int32_t work = 0;
  // The launch that a graph captures: it covers whatever fits the limits.
  AttentionPlan Padded() const { return {limits, limits.tokens, limits.work}; }
};

// Lays out `sequences`, in the order of their tokens in the step, in `image`, which holds
// AttentionImage(limits).bytes(). INVALID_ARGUMENT for a sequence that makes no sense or an image
// of another size, RESOURCE_EXHAUSTED where they don't fit the limits; both name what and how much.
absl::StatusOr<AttentionPlan> PlanAttention(const AttentionLimits& limits,
                                            absl::Span<const AttentionSequence> sequences,
                                            absl::Span<int32_t> image);

// Rows (queries x heads of one key head) of a tile: 128 in prefill; 16 in decode, and 8 where
// limits of as many tokens as sequences say that each sequence has one query, if that is enough for
// it.
int32_t TileRows(const AttentionLimits& limits);

// Keys in a chunk of a decode sequence, whole pages: its keys in equal chunks of kDecodeChunkKeys
// or more (up to twice as many), and as many more as leave 64 chunks (16 where the key heads alone
// fill the device).
inline constexpr int32_t kDecodeChunkKeys = 256;
int32_t DecodeChunk(int32_t length, int32_t kv_heads, int32_t page_size);
// The most chunks of a decode sequence of up to `context` keys.
int32_t MostDecodeChunks(int64_t context, int32_t kv_heads);

}  // namespace nibble
