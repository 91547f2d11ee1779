#include "quant/model/cuda/step_plan.h"

#include <algorithm>
#include <cstring>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr int32_t kRowInts = sizeof(SamplingRow) / sizeof(int32_t);
// Fewest keys in a chunk of prefill that is cut (attention_plan.cc).
constexpr int64_t kPrefillKeys = 512;
// Prefill's partial results of a step, unless its tokens alone are more: 128 MiB at 32 heads of
// 128.
constexpr int64_t kPartials = 8192;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t Aligned(int64_t count) { return CeilDiv(count, 4) * 4; }

bool IsDecode(const CudaSequence& sequence) { return sequence.tokens.size() == 1; }

int64_t Length(const CudaSequence& sequence) {
  return sequence.position + static_cast<int64_t>(sequence.tokens.size());
}

AttentionLimits Empty(const AttentionShape& shape, AttentionRegime regime) {
  return {.regime = regime,
          .group = shape.group,
          .kv_heads = shape.kv_heads,
          .page_size = shape.page_size};
}

int64_t Tiles(const AttentionShape& shape, AttentionRegime regime, int64_t queries) {
  return CeilDiv(queries * shape.group, regime == AttentionRegime::kDecode ? 16 : 128);
}

void Extend(const AttentionShape& shape, const CudaSequence& sequence, AttentionLimits& limits) {
  const auto queries = static_cast<int32_t>(sequence.tokens.size());
  const int64_t length = Length(sequence);
  const int64_t keys = IsDecode(sequence) ? kDecodeChunkKeys : kPrefillKeys;
  const int64_t chunks = CeilDiv(length, keys);
  limits.sequences += 1;
  limits.tokens += queries;
  limits.pages += static_cast<int32_t>(CeilDiv(length, shape.page_size));
  limits.work += static_cast<int32_t>(Tiles(shape, limits.regime, queries) * chunks);
  limits.partials += static_cast<int32_t>(queries * chunks);
}

std::vector<AttentionSequence> ForAttention(absl::Span<const CudaSequence* const> sequences) {
  std::vector<AttentionSequence> out;
  for (const CudaSequence* sequence : sequences) {
    out.push_back({.queries = static_cast<int32_t>(sequence->tokens.size()),
                   .length = static_cast<int32_t>(Length(*sequence)),
                   .pages = sequence->blocks});
  }
  return out;
}

absl::Status CheckFits(const StepLimits& limits, int64_t tokens, int64_t draws) {
  if (tokens <= limits.tokens && draws <= limits.draws) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat("step: found ", tokens, " tokens, ", draws,
                                             " drawn, expected at most ", limits.tokens, ", ",
                                             limits.draws));
}

// The arrays that attention does not read.
void WriteTokens(const StepImage& at, absl::Span<const CudaSequence* const> sequences,
                 absl::Span<int32_t> image, StepPlan& plan) {
  for (const CudaSequence* sequence : sequences) {
    for (size_t i = 0; i < sequence->tokens.size(); ++i, ++plan.tokens) {
      image[at.ids + plan.tokens] = sequence->tokens[i];
      image[at.positions + plan.tokens] = static_cast<int32_t>(sequence->position + i);
    }
    if (!sequence->sample) continue;
    image[at.draw_rows + plan.draws] = plan.tokens - 1;
    image[at.draw_positions + plan.draws] = static_cast<int32_t>(Length(*sequence));
    std::memcpy(&image[at.draws + int64_t{plan.draws} * kRowInts], &sequence->sampling,
                sizeof(SamplingRow));
    ++plan.draws;
  }
}

}  // namespace

std::vector<size_t> BatchOrder(absl::Span<const CudaSequence> sequences) {
  std::vector<size_t> order;
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (IsDecode(sequences[i]) == decode) order.push_back(i);
    }
  }
  return order;
}

StepLimits LimitsOf(const AttentionShape& shape, absl::Span<const CudaSequence> sequences) {
  StepLimits limits;
  AttentionLimits decode = Empty(shape, AttentionRegime::kDecode);
  AttentionLimits prefill = Empty(shape, AttentionRegime::kPrefill);
  for (const CudaSequence& sequence : sequences) {
    limits.tokens += static_cast<int32_t>(sequence.tokens.size());
    limits.draws += sequence.sample ? 1 : 0;
    Extend(shape, sequence, IsDecode(sequence) ? decode : prefill);
  }
  prefill.partials = static_cast<int32_t>(
      std::min<int64_t>(prefill.partials, std::max<int64_t>(prefill.tokens, kPartials)));
  if (decode.sequences > 0) limits.decode = decode;
  if (prefill.sequences > 0) limits.prefill = prefill;
  return limits;
}

StepLimits DecodeLimits(const AttentionShape& shape, int32_t sequences, int32_t chunks,
                        int64_t context) {
  AttentionLimits decode = Empty(shape, AttentionRegime::kDecode);
  const bool any = chunks >= MostDecodeChunks(context, shape.kv_heads);
  // A sequence of n chunks has fewer than n + 1 times kDecodeChunkKeys.
  const int64_t keys = any ? context : (int64_t{chunks} + 1) * kDecodeChunkKeys;
  decode.sequences = decode.tokens = sequences;
  decode.pages = static_cast<int32_t>(sequences * CeilDiv(keys, shape.page_size));
  decode.partials = sequences * chunks;
  decode.work = static_cast<int32_t>(Tiles(shape, decode.regime, 1) * decode.partials);
  return {.tokens = sequences, .draws = sequences, .decode = decode};
}

StepImage::StepImage(const StepLimits& limits) : end(0) {
  const auto take = [this](int64_t count) {
    const int64_t begin = end;
    end += Aligned(count);
    return begin;
  };
  ids = take(limits.tokens);
  positions = take(limits.tokens);
  draw_rows = take(limits.draws);
  draw_positions = take(limits.draws);
  draws = take(int64_t{limits.draws} * kRowInts);
  decode = take(limits.decode ? AttentionImage(*limits.decode).end : 0);
  prefill = take(limits.prefill ? AttentionImage(*limits.prefill).end : 0);
}

StepPlan StepPlan::Padded() const {
  StepPlan padded = *this;
  padded.tokens = limits.tokens;
  padded.draws = limits.draws;
  if (decode) padded.decode = decode->Padded();
  if (prefill) padded.prefill = prefill->Padded();
  return padded;
}

absl::StatusOr<StepPlan> PlanStep(const StepLimits& limits,
                                  absl::Span<const CudaSequence> sequences,
                                  absl::Span<int32_t> image) {
  const StepImage at(limits);
  if (static_cast<int64_t>(image.size()) != at.end) {
    return absl::InvalidArgumentError(
        StrCat("step: found an image of ", image.size(), " elements, expected ", at.end));
  }
  std::vector<const CudaSequence*> ordered;
  int64_t tokens = 0;
  int64_t draws = 0;
  size_t decodes = 0;
  for (const size_t index : BatchOrder(sequences)) {
    ordered.push_back(&sequences[index]);
    tokens += static_cast<int64_t>(sequences[index].tokens.size());
    draws += sequences[index].sample ? 1 : 0;
    decodes += IsDecode(sequences[index]) ? 1 : 0;
  }
  NIBBLE_RETURN_IF_ERROR(CheckFits(limits, tokens, draws));
  StepPlan plan{.limits = limits};
  std::fill(image.begin(), image.begin() + at.decode, 0);
  WriteTokens(at, ordered, image, plan);
  const absl::Span<const CudaSequence* const> all = ordered;
  const auto attention = [&](const std::optional<AttentionLimits>& part, int64_t begin,
                             absl::Span<const CudaSequence* const> of) {
    return PlanAttention(*part, ForAttention(of), image.subspan(begin, AttentionImage(*part).end));
  };
  if (limits.decode) {
    NIBBLE_ASSIGN_OR_RETURN(plan.decode, attention(limits.decode, at.decode, all.first(decodes)));
  }
  if (limits.prefill) {
    NIBBLE_ASSIGN_OR_RETURN(plan.prefill,
                            attention(limits.prefill, at.prefill, all.subspan(decodes)));
  }
  return plan;
}

}  // namespace nibble
