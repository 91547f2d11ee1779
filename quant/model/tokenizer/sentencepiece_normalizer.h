// How SentencePiece rewrites text before it cuts it into pieces.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/tokenizer/piece_trie.h"
#include "quant/model/tokenizer/sentencepiece_model.h"

namespace nibble {

// Immutable: safe to share between threads.
class SentencePieceNormalizer {
 public:
  // INVALID_ARGUMENT for a broken charsmap.
  static absl::StatusOr<SentencePieceNormalizer> Create(
      const SentencePieceModel::Normalization& options);

  // `text` is valid UTF-8. What `kept` finds stays as it is. RESOURCE_EXHAUSTED when the text
  // grows beyond all measure, as no real charsmap makes it.
  absl::StatusOr<std::string> Normalize(std::string_view text, const PieceTrie& kept) const;

 private:
  struct Step {
    size_t bytes;              // of the text
    std::string_view becomes;  // this
  };

  SentencePieceNormalizer() = default;
  Step NextStep(std::string_view text, const PieceTrie& kept) const;
  size_t LongestRule(std::string_view text, uint32_t& replacement) const;

  SentencePieceModel::Normalization options_;
  std::vector<uint32_t> rules_;  // a double array of Darts-clone; empty: none
  size_t replacements_ = 0;      // where the charsmap's replacements begin, each ending in NUL
};

}  // namespace nibble
