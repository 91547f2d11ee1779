// The regular expressions of tokenizer.json, matched by PCRE2. They are written for Oniguruma, so
// they are translated where the two mean different things, and refused where that is not built.
// Properties such as \p{L} are those of PCRE2's Unicode version: 14 with PCRE2 10.42; the Python
// package knows the letters of later versions too.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace nibble {

// PCRE2's spelling of an Oniguruma (Ruby syntax) pattern. UNIMPLEMENTED with the construct's name.
absl::StatusOr<std::string> TranslatePattern(std::string_view pattern);

// Immutable: safe to share between threads.
class Regex {
 public:
  // An Oniguruma pattern. INVALID_ARGUMENT when it does not compile or can match nothing at all.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // A pattern that matches this text.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // Cuts `text`, which is valid UTF-8, into matches and what lies between them, in order; no piece
  // is empty. RESOURCE_EXHAUSTED when the pattern needs more than its limits of steps or memory.
  enum class Piece { kMatch, kBetween };
  using PieceSink = absl::FunctionRef<absl::Status(std::string_view piece, Piece kind)>;
  absl::Status Split(std::string_view text, PieceSink sink) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  explicit Regex(pcre2_real_code_8* code) : code_(code) {}
  static absl::StatusOr<Regex> CompileTranslated(const std::string& pattern);

  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace nibble
