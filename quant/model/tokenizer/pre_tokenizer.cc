#include "quant/model/tokenizer/pre_tokenizer.h"

#include <string>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr size_t kMaxSteps = 32;
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kWholeText = R"([\x{0}-\x{10ffff}]+)";

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const JsonObject& json) {
  PreTokenizer pre_tokenizer;
  NIBBLE_RETURN_IF_ERROR(pre_tokenizer.Add(json, 0));
  if (!pre_tokenizer.byte_level_) {
    return absl::UnimplementedError(
        StrCat(json.where(), ": found no ByteLevel; only byte-level pre-tokenizers are built"));
  }
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const JsonObject& json, size_t depth) {
  if (steps_.size() == kMaxSteps || depth == kMaxSteps) {
    return absl::InvalidArgumentError(StrCat(json.where(), ": found more steps than ", kMaxSteps));
  }
  const absl::StatusOr<std::string> type = json.String("type");
  if (!type.ok()) return type.status();
  if (*type == "Sequence") return AddSequence(json, depth);
  if (byte_level_) {
    return absl::UnimplementedError(
        StrCat(json.where(), ": another pre-tokenizer after ByteLevel is not built"));
  }
  if (*type == "Split") return AddSplit(json);
  if (*type == "Digits") return AddDigits(json);
  if (*type == "ByteLevel") return AddByteLevel(json);
  return absl::UnimplementedError(
      StrCat(json.where(), ": the pre-tokenizer ", Quoted(*type),
             " is not built; built are Split, Digits, ByteLevel and Sequence"));
}

absl::Status PreTokenizer::AddSequence(const JsonObject& json, size_t depth) {
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, json.Array("pretokenizers"));
  for (const Json& item : *list) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject step, JsonObject::From(item, json.where()));
    NIBBLE_RETURN_IF_ERROR(Add(step, depth + 1));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddSplit(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject pattern, json.Object("pattern"));
  const bool literal = pattern.Has("String");
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, pattern.String(literal ? "String" : "Regex"));
  NIBBLE_ASSIGN_OR_RETURN(Regex regex, literal ? Regex::Literal(text) : Regex::Compile(text));
  NIBBLE_ASSIGN_OR_RETURN(const std::string behavior, json.String("behavior"));
  NIBBLE_ASSIGN_OR_RETURN(const bool invert, json.Bool("invert", false));
  if (behavior != "Isolated" && behavior != "Removed") {
    return absl::UnimplementedError(StrCat(json.where(), ": the behavior ", Quoted(behavior),
                                           " is not built; built are Isolated and Removed"));
  }
  const bool removed = behavior == "Removed";
  steps_.push_back({.regex = std::move(regex),
                    .keep_matches = !removed || invert,
                    .keep_between = !removed || !invert});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddDigits(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const bool individual, json.Bool("individual_digits", false));
  NIBBLE_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(individual ? R"(\p{N})" : R"(\p{N}+)"));
  steps_.push_back({.regex = std::move(regex)});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const bool prefix_space, json.Bool("add_prefix_space", true));
  NIBBLE_ASSIGN_OR_RETURN(const bool use_regex, json.Bool("use_regex", true));
  byte_level_ = true;
  if (!use_regex && !prefix_space) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(use_regex ? kGpt2Pattern : kWholeText));
  steps_.push_back({.prefix_space = prefix_space, .regex = std::move(regex)});
  return absl::OkStatus();
}

absl::Status PreTokenizer::Run(size_t index, std::string_view text, WordSink sink) const {
  if (index == steps_.size()) return sink(text);
  const Step& step = steps_[index];
  std::string prefixed;
  if (step.prefix_space && !text.starts_with(' ')) {
    prefixed = StrCat(" ", text);
    text = prefixed;
  }
  return step.regex.Split(text, [&](std::string_view piece, Regex::Piece kind) {
    const bool keep = kind == Regex::Piece::kMatch ? step.keep_matches : step.keep_between;
    return keep ? Run(index + 1, piece, sink) : absl::OkStatus();
  });
}

}  // namespace nibble
