// Cuts text into the words that byte-pair encoding never merges across, by the "pre_tokenizer" of
// a tokenizer.json.
#pragma once

#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/regex.h"

namespace nibble {

// Immutable: safe to share between threads.
class PreTokenizer {
 public:
  // Built: Split (isolated, removed), Digits, and ByteLevel at the end, alone or in a Sequence.
  // Another type or behaviour is UNIMPLEMENTED with its name.
  static absl::StatusOr<PreTokenizer> Parse(const JsonObject& json);

  using WordSink = absl::FunctionRef<absl::Status(std::string_view word)>;
  absl::Status Split(std::string_view text, WordSink sink) const { return Run(0, text, sink); }

 private:
  struct Step {
    bool prefix_space = false;  // before the step, where the text has no space in front
    Regex regex;
    // Pieces of the other kind are dropped.
    bool keep_matches = true;
    bool keep_between = true;
  };

  absl::Status Add(const JsonObject& json, size_t depth);
  absl::Status AddSequence(const JsonObject& json, size_t depth);
  absl::Status AddSplit(const JsonObject& json);
  absl::Status AddDigits(const JsonObject& json);
  absl::Status AddByteLevel(const JsonObject& json);
  absl::Status Run(size_t index, std::string_view text, WordSink sink) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace nibble
