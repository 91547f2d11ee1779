#include "quant/model/tokenizer/tokenizer.h"

#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/bpe_tokenizer.h"
#include "quant/model/tokenizer/sentencepiece_tokenizer.h"

namespace nibble {
namespace {

// A vocabulary of 256k tokens with 600k merges is half of this.
constexpr JsonLimits kTokenizerLimits = {
    .bytes = size_t{64} << 20, .values = size_t{4} << 20, .depth = 32};
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadJson(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const Json document, ReadJsonFile(path, kTokenizerLimits));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::From(document, path.string()));
  return BpeTokenizer::Parse(json);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& folder) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadJson(folder / "tokenizer.json");
  const absl::StatusCode code = tokenizer.status().code();
  const bool missing = code == absl::StatusCode::kNotFound;
  if (!missing && code != absl::StatusCode::kUnimplemented) return tokenizer;
  std::error_code error;
  if (std::filesystem::exists(folder / "tokenizer.model", error)) {
    return SentencePieceTokenizer::Load(folder);
  }
  if (!missing) return tokenizer;
  return absl::NotFoundError(
      StrCat(folder.string(), ": found neither tokenizer.json nor tokenizer.model"));
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids,
                                              DecodeSpecial special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (special == DecodeSpecial::kSkip && IsSpecial(id)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string token, TokenBytes(id));
    bytes += token;
  }
  return ReplaceInvalidUtf8(bytes);
}

std::string StreamDecoder::Push(std::string_view bytes) {
  pending_ += bytes;
  std::string_view rest = pending_;
  std::string shown;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kUnfinished) break;
    shown += step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, step.bytes) : kReplacement;
    rest.remove_prefix(step.bytes);
  }
  pending_ = std::string(rest);
  return shown;
}

std::string StreamDecoder::Finish() {
  std::string last = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  return last;
}

}  // namespace nibble
