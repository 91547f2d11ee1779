// The host's part of one step on a GPU: everything the kernels read about the step, laid out in one
// image that is copied to the device at once. Free of CUDA and LibTorch.
//
// Sequences with one new token stand first and are attended in the decode regime, so that none of
// them depends on the rest of the batch; the others follow and are attended in the prefill regime.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/kernels/plan/attention_plan.h"
#include "quant/kernels/plan/sampling.h"

namespace nibble {

// New tokens of one sequence.
struct CudaSequence {
  absl::Span<const int32_t> tokens;  // at least one
  int64_t position = 0;              // of the first of them
  absl::Span<const int32_t> blocks;  // KV blocks of positions 0 .. position + tokens.size() - 1
  bool sample = false;               // draw the token after the last one
  SamplingRow sampling;
};

// What an image has room for.
struct StepLimits {
  int32_t tokens = 0;
  int32_t draws = 0;  // rows whose next token is drawn
  std::optional<AttentionLimits> decode;
  std::optional<AttentionLimits> prefill;
};

// The shape of a model's attention, as AttentionLimits wants it.
struct AttentionShape {
  int32_t group = 1;  // query heads per key head
  int32_t kv_heads = 1;
  int32_t page_size = 16;
};

// The order in which a step's sequences stand in its batch: indices into `sequences`.
std::vector<size_t> BatchOrder(absl::Span<const CudaSequence> sequences);

// Room for exactly these sequences.
StepLimits LimitsOf(const AttentionShape& shape, absl::Span<const CudaSequence> sequences);

// Room for `sequences` of one new token each, all drawn, of `context` keys at most, which have
// `chunks` (up to MostDecodeChunks: then any fit) chunks of keys on average.
StepLimits DecodeLimits(const AttentionShape& shape, int32_t sequences, int32_t chunks,
                        int64_t context);

// Where the image's arrays lie, in int32 elements from its start, each aligned to 16 bytes.
struct StepImage {
  explicit StepImage(const StepLimits& limits);

  int64_t ids;             // [tokens]
  int64_t positions;       // [tokens] of each in its sequence
  int64_t draw_rows;       // [draws] the batch's row that is drawn from
  int64_t draw_positions;  // [draws] of the token to be drawn
  int64_t draws;           // [draws] SamplingRow
  int64_t decode;          // the decode regime's AttentionImage
  int64_t prefill;         // the prefill regime's
  int64_t end;
};

struct StepPlan {
  StepLimits limits;
  int32_t tokens = 0;
  int32_t draws = 0;
  std::optional<AttentionPlan> decode;  // of the first decode->tokens tokens
  std::optional<AttentionPlan> prefill;
  // The step that a graph captures: it covers whatever fits the limits.
  StepPlan Padded() const;
};

// Lays out the sequences in BatchOrder in `image`, of StepImage(limits).end elements; unused rows
// are those of token 0, drawn greedily. RESOURCE_EXHAUSTED where they don't fit the limits.
absl::StatusOr<StepPlan> PlanStep(const StepLimits& limits,
                                  absl::Span<const CudaSequence> sequences,
                                  absl::Span<int32_t> image);

}  // namespace nibble
