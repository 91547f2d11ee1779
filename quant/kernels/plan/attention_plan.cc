#include "quant/kernels/plan/attention_plan.h"

#include <algorithm>
#include <string_view>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

// A prefill chunk is a multiple of its kernel's step through the keys.
constexpr int32_t kChunkStep = 128;
constexpr int32_t kMultiprocessors = 132;  // of an H100 or H200: how much work fills it

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a decode sequence: as many as fill the device.
int64_t MostChunks(int32_t kv_heads) {
  return std::clamp<int64_t>(CeilDiv(kMultiprocessors, kv_heads), 16, 64);
}

int64_t Tiles(const AttentionLimits& limits, const AttentionSequence& sequence) {
  return CeilDiv(int64_t{sequence.queries} * limits.group, TileRows(limits));
}

absl::Status Check(const AttentionLimits& limits, size_t index, const AttentionSequence& sequence) {
  const auto invalid = [&](std::string_view what, int64_t found, std::string_view expected,
                           int64_t bound) {
    return absl::InvalidArgumentError(StrCat("attention plan: sequence ", index, ": found ", what,
                                             " ", found, ", expected ", expected, " ", bound));
  };
  if (sequence.queries < 1) return invalid("queries", sequence.queries, "at least", 1);
  if (TileRows(limits) == 8 && sequence.queries > 1) {
    return invalid("queries", sequence.queries, "with as many tokens as sequences at most", 1);
  }
  if (sequence.length < sequence.queries) {
    return invalid("length", sequence.length, "at least its queries,", sequence.queries);
  }
  const int64_t pages = CeilDiv(sequence.length, limits.page_size);
  if (static_cast<int64_t>(sequence.pages.size()) < pages) {
    return invalid("pages", static_cast<int64_t>(sequence.pages.size()), "at least", pages);
  }
  return absl::OkStatus();
}

struct Totals {
  int64_t tokens = 0;
  int64_t pages = 0;
  int64_t work = 0;
  int64_t partials = 0;
};

// `chunk_of(sequence)`: keys in a chunk of it.
template <class ChunkOf>
Totals Sum(const AttentionLimits& limits, absl::Span<const AttentionSequence> sequences,
           ChunkOf&& chunk_of) {
  Totals totals;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t chunks = CeilDiv(sequence.length, chunk_of(sequence));
    totals.tokens += sequence.queries;
    totals.pages += CeilDiv(sequence.length, limits.page_size);
    totals.work += Tiles(limits, sequence) * chunks;
    totals.partials += sequence.queries * chunks;
  }
  return totals;
}

absl::Status CheckFits(const AttentionLimits& limits, size_t sequences, const Totals& totals) {
  const auto fits = [](std::string_view what, int64_t found, int64_t limit) {
    if (found <= limit) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        StrCat("attention plan: found ", found, " ", what, ", expected at most ", limit));
  };
  absl::Status status = fits("sequences", static_cast<int64_t>(sequences), limits.sequences);
  status.Update(fits("tokens", totals.tokens, limits.tokens));
  status.Update(fits("pages", totals.pages, limits.pages));
  status.Update(fits("pieces of work", totals.work, limits.work));
  status.Update(fits("partial results", totals.partials, limits.partials));
  return status;
}

// Prefill: one chunk for all, halved from the longest sequence's keys while the device isn't full
// and the pieces fit.
int32_t PrefillChunk(const AttentionLimits& limits, absl::Span<const AttentionSequence> sequences) {
  int64_t longest = 1;
  for (const AttentionSequence& sequence : sequences) {
    longest = std::max<int64_t>(longest, sequence.length);
  }
  const auto round = [](int64_t keys) { return CeilDiv(keys, kChunkStep) * kChunkStep; };
  const auto sum = [&](int64_t keys) {
    return Sum(limits, sequences, [=](const AttentionSequence&) { return keys; });
  };
  int64_t chunk = round(longest);
  while (chunk > 4 * kChunkStep && sum(chunk).work * limits.kv_heads < kMultiprocessors) {
    const Totals halved = sum(round(chunk / 2));
    if (halved.work > limits.work || halved.partials > limits.partials) break;
    chunk = round(chunk / 2);
  }
  return static_cast<int32_t>(chunk);
}

// Appends to the image's arrays, sequence by sequence.
class ImageWriter {
 public:
  ImageWriter(const AttentionLimits& limits, absl::Span<int32_t> image)
      : limits_(limits), at_(limits), image_(image), valid_(ValidBytes(image, at_)) {
    Mark();
  }

  void Add(const AttentionSequence& sequence, int32_t chunk) {
    const auto chunks = static_cast<int32_t>(CeilDiv(sequence.length, chunk));
    AddTokens(sequence, chunks);
    AddWork(sequence, chunk, chunks);
    image_[at_.lengths + sequences_] = sequence.length;
    const int64_t pages = CeilDiv(sequence.length, limits_.page_size);
    std::copy_n(sequence.pages.begin(), pages, image_.begin() + at_.pages + pages_);
    pages_ += static_cast<int32_t>(pages);
    partials_ += sequence.queries * chunks;
    ++sequences_;
    Mark();
  }

  // What is unused: tokens without a slot, no work; its begins are the ends of what is used.
  AttentionPlan Finish() {
    std::fill_n(image_.begin() + at_.positions + tokens_, limits_.tokens - tokens_, 0);
    std::fill_n(image_.begin() + at_.slots + tokens_, limits_.tokens - tokens_, -1);
    std::fill_n(image_.begin() + at_.partial_begin + tokens_, limits_.tokens - tokens_ + 1,
                partials_);
    std::fill(valid_.begin() + work_, valid_.end(), uint8_t{0});
    while (sequences_ < limits_.sequences) {
      ++sequences_;
      Mark();
    }
    return {limits_, tokens_, work_};
  }

 private:
  void Mark() {
    image_[at_.query_begin + sequences_] = tokens_;
    image_[at_.sequence_partial + sequences_] = partials_;
    image_[at_.page_begin + sequences_] = pages_;
  }

  void AddTokens(const AttentionSequence& sequence, int32_t chunks) {
    for (int32_t i = 0; i < sequence.queries; ++i, ++tokens_) {
      const int32_t position = sequence.length - sequence.queries + i;
      const int32_t page = sequence.pages[position / limits_.page_size];
      image_[at_.positions + tokens_] = position;
      image_[at_.slots + tokens_] = page * limits_.page_size + position % limits_.page_size;
      image_[at_.partial_begin + tokens_] = partials_ + i * chunks;
    }
  }

  static absl::Span<uint8_t> ValidBytes(absl::Span<int32_t> image, const AttentionImage& at) {
    return {reinterpret_cast<uint8_t*>(image.data() + at.work_valid),
            static_cast<size_t>(at.work_query - at.work_valid) * sizeof(int32_t)};
  }

  void AddWork(const AttentionSequence& sequence, int32_t chunk, int32_t chunks) {
    for (int32_t tile = 0; tile < Tiles(limits_, sequence); ++tile) {
      for (int32_t i = 0; i < chunks; ++i, ++work_) {
        image_[at_.work_sequence + work_] = sequences_;
        image_[at_.work_tile + work_] = tile;
        image_[at_.work_chunk + work_] = i;
        image_[at_.work_keys + work_] = chunk;
        valid_[work_] = 1;
        if (limits_.regime == AttentionRegime::kPrefill) continue;
        image_[at_.work_query + work_] = tokens_ - sequence.queries;
        image_[at_.work_queries + work_] = sequence.queries;
        image_[at_.work_length + work_] = sequence.length;
        image_[at_.work_page + work_] = pages_ + i * (chunk / limits_.page_size);
      }
    }
  }

  const AttentionLimits& limits_;
  const AttentionImage at_;
  absl::Span<int32_t> image_;
  absl::Span<uint8_t> valid_;
  int32_t sequences_ = 0;
  int32_t tokens_ = 0;
  int32_t pages_ = 0;
  int32_t work_ = 0;
  int32_t partials_ = 0;
};

}  // namespace

AttentionImage::AttentionImage(const AttentionLimits& limits) : end(0) {
  const auto take = [this](int64_t count) {
    const int64_t begin = end;
    end += CeilDiv(count, 4) * 4;  // 16 bytes
    return begin;
  };
  positions = take(limits.tokens);
  slots = take(limits.tokens);
  partial_begin = take(limits.tokens + 1);
  query_begin = take(limits.sequences + 1);
  sequence_partial = take(limits.sequences + 1);
  page_begin = take(limits.sequences + 1);
  lengths = take(limits.sequences);
  pages = take(limits.pages);
  work_sequence = take(limits.work);
  work_tile = take(limits.work);
  work_chunk = take(limits.work);
  work_keys = take(limits.work);
  work_valid = take(CeilDiv(limits.work, 4));
  const int64_t decode_work = limits.regime == AttentionRegime::kDecode ? limits.work : 0;
  work_query = take(decode_work);
  work_queries = take(decode_work);
  work_length = take(decode_work);
  work_page = take(decode_work);
}

absl::StatusOr<AttentionPlan> PlanAttention(const AttentionLimits& limits,
                                            absl::Span<const AttentionSequence> sequences,
                                            absl::Span<int32_t> image) {
  const AttentionImage layout(limits);
  if (static_cast<int64_t>(image.size()) != layout.end) {
    return absl::InvalidArgumentError(StrCat("attention plan: found an image of ", image.size(),
                                             " elements, expected ", layout.end));
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(Check(limits, i, sequences[i]));
  }
  const bool decode = limits.regime == AttentionRegime::kDecode;
  const int32_t prefill_chunk = decode ? 0 : PrefillChunk(limits, sequences);
  const auto chunk_of = [&](const AttentionSequence& sequence) {
    return decode ? DecodeChunk(sequence.length, limits.kv_heads, limits.page_size) : prefill_chunk;
  };
  NIBBLE_RETURN_IF_ERROR(CheckFits(limits, sequences.size(), Sum(limits, sequences, chunk_of)));
  ImageWriter writer(limits, image);
  for (const AttentionSequence& sequence : sequences) writer.Add(sequence, chunk_of(sequence));
  return writer.Finish();
}

int32_t TileRows(const AttentionLimits& limits) {
  if (limits.regime == AttentionRegime::kPrefill) return 128;
  return limits.tokens == limits.sequences && limits.group <= 8 ? 8 : 16;
}

int32_t DecodeChunk(int32_t length, int32_t kv_heads, int32_t page_size) {
  const int64_t keys = CeilDiv(length, MostDecodeChunks(length, kv_heads));
  return static_cast<int32_t>(CeilDiv(keys, page_size) * page_size);
}

int32_t MostDecodeChunks(int64_t context, int32_t kv_heads) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(context / kDecodeChunkKeys, 1, MostChunks(kv_heads)));
}

}  // namespace nibble
