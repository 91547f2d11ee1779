// Texts for calibration and evaluation (DESIGN 2, "Perplexity").
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/tokenizer/tokenizer.h"

namespace nibble {

// .txt: the file as it is. .jsonl: the `text` fields of lines first..last (1-based, inclusive; 0
// and 0: all) joined by one space. OUT_OF_RANGE with the number of texts when the range goes
// beyond.
absl::StatusOr<std::string> ReadCorpus(const std::filesystem::path& file, int64_t first_text,
                                       int64_t last_text);

// The text tokenized once (with the tokenizer's own BOS rule), cut into windows without overlap,
// the last partial one dropped. `max_windows` 0: all; more than there are is INVALID_ARGUMENT, and
// so is a token that is none of a model's `vocab`.
absl::StatusOr<std::vector<std::vector<int32_t>>> CutWindows(const Tokenizer& tokenizer,
                                                             int64_t vocab, std::string_view text,
                                                             int64_t window_tokens,
                                                             int64_t max_windows);

}  // namespace nibble
