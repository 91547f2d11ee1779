// Text to token ids and back, from the files of a Hugging Face folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

enum class SpecialTokens { kNone, kAdd };  // the post-processor's BOS and the like
enum class DecodeSpecial { kSkip, kKeep };

// Immutable after Load: safe to share between threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Reads tokenizer.json (byte-level BPE). Where it is not there, or is of a kind that is not
  // built as those that were made of a tokenizer.model, tokenizer.model (SentencePiece). An
  // unknown pre-tokenizer, normalizer or model is UNIMPLEMENTED with its name.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& folder);

  // Added tokens written in the text become their ids. Invalid UTF-8 is replaced by U+FFFD, as the
  // `tokenizers` package's callers do. Like that package, a vocabulary without a token for some
  // byte and without an unknown token drops the byte. RESOURCE_EXHAUSTED when the tokenizer's
  // regular expression needs too many steps.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      SpecialTokens special) const = 0;
  // The bytes that a token stands for: possibly part of a UTF-8 character. OUT_OF_RANGE for ids
  // beyond the vocabulary.
  virtual absl::StatusOr<std::string> TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual int32_t vocab_size() const = 0;
  virtual absl::StatusOr<int32_t> TokenId(std::string_view token) const = 0;

  // The text of all the tokens: valid UTF-8. At the start of a text some tokenizers leave out a
  // space that is theirs; in a stream, which goes on after a prompt, TokenBytes keeps it.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                             DecodeSpecial special) const;
};

// Token bytes in, whole UTF-8 characters out.
class StreamDecoder {
 public:
  // Returns what can be shown now; an unfinished character waits, an invalid one becomes U+FFFD.
  std::string Push(std::string_view bytes);
  // What waits at the end of the stream, as U+FFFD.
  std::string Finish();

 private:
  std::string pending_;
};

struct ChatMessage {
  std::string role;  // system, user, assistant
  std::string content;
};
// Renders a conversation with the folder's chat template: chat_template.jinja, or "chat_template"
// of tokenizer_config.json. Known templates: ChatML and Llama-3; any other is UNIMPLEMENTED with
// the reason. The assistant's turn is opened at the end. The text already has its BOS: encode it
// with SpecialTokens::kNone.
class ChatTemplate {
 public:
  static absl::StatusOr<ChatTemplate> Load(const std::filesystem::path& folder);
  // INVALID_ARGUMENT for no messages or an unknown role.
  absl::StatusOr<std::string> Render(absl::Span<const ChatMessage> messages) const;

 private:
  enum class Style { kChatMl, kLlama3 };
  Style style_ = Style::kChatMl;
  std::string default_system_;  // said when the first message is not a system's; may be empty
  bool has_default_system_ = false;
  std::string bos_;    // in front of everything; may be empty
  bool trim_ = false;  // white space around contents
};

}  // namespace nibble
