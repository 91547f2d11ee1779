// The tokenizer of a tokenizer.model (format and results of the `sentencepiece` package).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "quant/model/tokenizer/added_tokens.h"
#include "quant/model/tokenizer/sentencepiece_model.h"
#include "quant/model/tokenizer/sentencepiece_normalizer.h"
#include "quant/model/tokenizer/tokenizer.h"

namespace nibble {

// Control tokens written in a text are text: only the tokens that added_tokens.json and
// tokenizer_config.json add beyond the model's vocabulary are found in it, and each stretch
// between them is encoded by itself. SpecialTokens::kAdd adds BOS unless "add_bos_token" of
// tokenizer_config.json is false, and EOS if "add_eos_token" is true; a model without such a
// control token adds none.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  // Reads tokenizer.model and, where they exist, tokenizer_config.json and added_tokens.json.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& folder);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              SpecialTokens special) const override;
  // A piece with its U+2581 as spaces; the byte of a byte piece; " ⁇ " for the unknown piece,
  // unless the model says otherwise; a control token's name.
  absl::StatusOr<std::string> TokenBytes(int32_t id) const override;
  // Control tokens and added special ones.
  bool IsSpecial(int32_t id) const override;
  int32_t vocab_size() const override { return vocab_size_; }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override;
  // As the package, without the space that it puts in front of a text. Bytes of no character
  // become a U+FFFD each.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     DecodeSpecial special) const override;

 private:
  struct Extras;  // what the JSON files say

  SentencePieceTokenizer(SentencePieceModel model, SentencePieceNormalizer normalizer,
                         AddedTokens added, const Extras& extras);
  bool IsPiece(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < model_.pieces.size();
  }
  absl::Status EncodeStretch(std::string_view text, std::vector<int32_t>& ids) const;

  SentencePieceModel model_;
  SentencePieceNormalizer normalizer_;
  AddedTokens added_;
  absl::flat_hash_map<int32_t, AddedToken> added_by_id_;
  int32_t vocab_size_;
  std::vector<int32_t> prefix_, suffix_;
};

}  // namespace nibble
