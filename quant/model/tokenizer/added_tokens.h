// Tokens that are found in the text before anything else is done to it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "quant/model/tokenizer/regex.h"

namespace nibble {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool single_word = false;  // only where no word character touches it
  bool normalized = false;   // looked for after normalization, in what the others leave
};

// Immutable: safe to share between threads.
class AddedTokens {
 public:
  static absl::StatusOr<AddedTokens> Create(std::vector<AddedToken> tokens);

  // Calls `sink` for the stretches of valid UTF-8 `text` in order: with a token, or with null for
  // the text between. At each place the longest token wins.
  using Sink = absl::FunctionRef<absl::Status(std::string_view piece, const AddedToken* token)>;
  absl::Status Split(std::string_view text, Sink sink) const;

 private:
  // Of one pass: sorted by content.
  struct Pass {
    std::vector<AddedToken> tokens;
    bool starts[256] = {};  // whether a token begins with the byte
    const AddedToken* LongestAt(std::string_view text) const;
  };

  explicit AddedTokens(Regex word) : word_(std::move(word)) {}
  absl::Status SplitPass(const Pass& pass, std::string_view text, Sink sink) const;
  absl::StatusOr<bool> TouchesWord(std::string_view before, std::string_view after) const;

  Pass raw_, normalized_;
  Regex word_;  // one word character
};

}  // namespace nibble
