// The byte-level BPE tokenizer of a tokenizer.json (format of the `tokenizers` package).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/added_tokens.h"
#include "quant/model/tokenizer/bpe.h"
#include "quant/model/tokenizer/pre_tokenizer.h"
#include "quant/model/tokenizer/tokenizer.h"

namespace nibble {

class BpeTokenizer final : public Tokenizer {
 public:
  // "truncation" and "padding" do not count, as in transformers.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(const JsonObject& json);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              SpecialTokens special) const override;
  absl::StatusOr<std::string> TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override;

 private:
  struct Token {
    std::string bytes;
    bool present = false;  // ids need not be dense
    bool special = false;
  };
  struct Parts;  // what Parse gathers

  explicit BpeTokenizer(Parts parts);
  absl::Status EncodeStretch(std::string_view text, std::vector<int32_t>& ids) const;

  std::vector<Token> tokens_;                        // by id
  absl::flat_hash_map<std::string, int32_t> names_;  // tokens that bytes do not spell, by content
  AddedTokens added_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  std::vector<int32_t> prefix_, suffix_;  // of the post-processor
};

}  // namespace nibble
