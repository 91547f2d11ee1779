// Perplexity of a model in this process (DESIGN 2, "Perplexity").
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/model/decoder/decoder.h"

namespace nibble {

struct Perplexity {
  double perplexity = 0;
  int64_t windows = 0;
  int64_t targets = 0;  // tokens scored
};

// Scores each window, of at least 2 tokens, on all but its first token; negative log likelihoods
// are summed in f64. INVALID_ARGUMENT when there are no windows.
absl::StatusOr<Perplexity> EvaluatePerplexity(const Decoder& decoder,
                                              absl::Span<const std::vector<int32_t>> windows);

// The windows of a corpus file, by the tokenizer of `model`, whole: see ReadCorpus and CutWindows.
absl::StatusOr<std::vector<std::vector<int32_t>>> EvaluationWindows(
    const std::filesystem::path& model, const std::filesystem::path& corpus, int64_t window_tokens);

}  // namespace nibble
