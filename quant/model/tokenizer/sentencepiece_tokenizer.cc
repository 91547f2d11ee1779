#include "quant/model/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/sentencepiece_segmenter.h"

namespace nibble {
namespace {

// The largest known, of a vocabulary of 256k pieces, are 5 MB.
constexpr size_t kMostFileBytes = size_t{32} << 20;
constexpr int64_t kMaxId = (int64_t{1} << 22) - 1;
// Places in a normalized text, which may be longer, are int32_t.
constexpr size_t kMostTextBytes = size_t{256} << 20;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Nothing when there is no such file.
absl::StatusOr<std::optional<Json>> ReadOptional(const std::filesystem::path& path) {
  absl::StatusOr<Json> json = ReadJsonFile(path);
  if (json.status().code() == absl::StatusCode::kNotFound) return std::optional<Json>();
  NIBBLE_RETURN_IF_ERROR(json.status());
  return std::optional<Json>(*std::move(json));
}

// A U+FFFD for every byte of `bytes` that belongs to no character.
void AppendBytes(std::string_view bytes, std::string& text) {
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    const bool valid = step.kind == Utf8Step::Kind::kCharacter;
    text += valid ? bytes.substr(0, step.bytes) : kReplacement;
    bytes.remove_prefix(valid ? step.bytes : 1);
  }
}

}  // namespace

struct SentencePieceTokenizer::Extras {
  bool add_bos = true, add_eos = false;
  std::map<int64_t, AddedToken> added;  // by id, beyond the pieces

  // added_tokens.json: {"content": id}.
  absl::Status ReadAdded(const JsonObject& json, int64_t pieces) {
    for (const auto& [content, value] : json.fields()) {
      const std::string where = StrCat(json.where(), ": ", Quoted(content));
      NIBBLE_ASSIGN_OR_RETURN(const int64_t id, JsonInt(value, where, {.max = kMaxId}));
      NIBBLE_RETURN_IF_ERROR(
          Add({.content = content, .id = static_cast<int32_t>(id)}, pieces, where));
    }
    return absl::OkStatus();
  }

  // tokenizer_config.json: its "added_tokens_decoder" is {"id": {"content": ...}}.
  absl::Status ReadConfig(const JsonObject& json, int64_t pieces) {
    NIBBLE_ASSIGN_OR_RETURN(add_bos, json.Bool("add_bos_token", true));
    NIBBLE_ASSIGN_OR_RETURN(add_eos, json.Bool("add_eos_token", false));
    if (!json.Has("added_tokens_decoder")) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject decoder, json.Object("added_tokens_decoder"));
    for (const auto& [key, value] : decoder.fields()) {
      AddedToken token;
      if (!absl::SimpleAtoi(key, &token.id) || token.id < 0 || token.id > kMaxId) {
        return absl::InvalidArgumentError(StrCat(decoder.where(), ": found ", Quoted(key),
                                                 ", expected an id from 0 to ", kMaxId));
      }
      NIBBLE_ASSIGN_OR_RETURN(const JsonObject entry, decoder.Object(key));
      NIBBLE_ASSIGN_OR_RETURN(token.content, entry.String("content"));
      NIBBLE_ASSIGN_OR_RETURN(token.special, entry.Bool("special", false));
      NIBBLE_ASSIGN_OR_RETURN(token.lstrip, entry.Bool("lstrip", false));
      NIBBLE_ASSIGN_OR_RETURN(token.rstrip, entry.Bool("rstrip", false));
      NIBBLE_ASSIGN_OR_RETURN(token.single_word, entry.Bool("single_word", false));
      NIBBLE_RETURN_IF_ERROR(Add(std::move(token), pieces, entry.where()));
    }
    return absl::OkStatus();
  }

  // The file that is read last knows more of a token.
  absl::Status Add(AddedToken token, int64_t pieces, std::string_view where) {
    if (token.id < pieces) return absl::OkStatus();
    const auto known = added.find(token.id);
    if (known != added.end() && known->second.content != token.content) {
      return absl::InvalidArgumentError(StrCat(where, ": found ", Quoted(token.content),
                                               " for the id ", token.id, ", expected ",
                                               Quoted(known->second.content)));
    }
    added[token.id] = std::move(token);
    return absl::OkStatus();
  }
};

absl::StatusOr<std::unique_ptr<Tokenizer>> SentencePieceTokenizer::Load(
    const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.model";
  const auto in_file = [&](const absl::Status& status) {
    return absl::Status(status.code(), StrCat(path.string(), ": ", status.message()));
  };
  NIBBLE_ASSIGN_OR_RETURN(const std::string file, ReadTextFile(path, kMostFileBytes));
  absl::StatusOr<SentencePieceModel> model = SentencePieceModel::Parse(file);
  if (!model.ok()) return in_file(model.status());
  auto normalizer = SentencePieceNormalizer::Create(model->normalization);
  if (!normalizer.ok()) return in_file(normalizer.status());

  Extras extras;
  const auto pieces = static_cast<int64_t>(model->pieces.size());
  for (const auto& [name, read] : {std::pair("added_tokens.json", &Extras::ReadAdded),
                                   std::pair("tokenizer_config.json", &Extras::ReadConfig)}) {
    const std::filesystem::path json_path = folder / name;
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<Json> document, ReadOptional(json_path));
    if (!document.has_value()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::From(*document, json_path.string()));
    NIBBLE_RETURN_IF_ERROR((extras.*read)(json, pieces));
  }
  std::vector<AddedToken> tokens;
  for (const auto& [id, token] : extras.added) tokens.push_back(token);
  NIBBLE_ASSIGN_OR_RETURN(AddedTokens added, AddedTokens::Create(std::move(tokens)));
  return std::unique_ptr<Tokenizer>(new SentencePieceTokenizer(
      *std::move(model), *std::move(normalizer), std::move(added), extras));
}

SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceModel model,
                                               SentencePieceNormalizer normalizer,
                                               AddedTokens added, const Extras& extras)
    : model_(std::move(model)),
      normalizer_(std::move(normalizer)),
      added_(std::move(added)),
      vocab_size_(static_cast<int32_t>(model_.pieces.size())) {
  for (const auto& [id, token] : extras.added) {
    added_by_id_.emplace(token.id, token);
    vocab_size_ = std::max(vocab_size_, token.id + 1);
  }
  const auto add = [&](bool wanted, std::string_view name, std::vector<int32_t>& ids) {
    const int32_t id = model_.PieceToId(name);
    if (wanted && model_.type(id) == SentencePieceModel::Type::kControl) ids.push_back(id);
  };
  add(extras.add_bos, model_.bos, prefix_);
  add(extras.add_eos, model_.eos, suffix_);
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(std::string_view text,
                                                                    SpecialTokens special) const {
  if (text.size() > kMostTextBytes) {
    return absl::ResourceExhaustedError(
        StrCat("text: found ", text.size(), " bytes, expected at most ", kMostTextBytes));
  }
  std::string replaced;
  if (!IsValidUtf8(text)) {
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  std::vector<int32_t> ids;
  if (special == SpecialTokens::kAdd) ids = prefix_;
  NIBBLE_RETURN_IF_ERROR(
      added_.Split(text, [&](std::string_view piece, const AddedToken* token) -> absl::Status {
        if (token == nullptr) return EncodeStretch(piece, ids);
        ids.push_back(token->id);
        return absl::OkStatus();
      }));
  if (special == SpecialTokens::kAdd) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

// An unknown character becomes its bytes where the model has them; else a run of them is one
// unknown piece.
absl::Status SentencePieceTokenizer::EncodeStretch(std::string_view text,
                                                   std::vector<int32_t>& ids) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string normalized,
                          normalizer_.Normalize(text, model_.user_defined));
  bool after_unknown = false;
  for (const auto& [piece, id] : Segment(model_, normalized)) {
    const bool unknown = id == model_.unknown_id;
    if (unknown && model_.byte_fallback) {
      for (const char byte : piece) ids.push_back(model_.byte_ids[static_cast<uint8_t>(byte)]);
    } else if (!unknown || !after_unknown) {
      ids.push_back(id);
    }
    after_unknown = unknown;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> SentencePieceTokenizer::TokenBytes(int32_t id) const {
  if (!IsPiece(id)) {
    if (const auto token = added_by_id_.find(id); token != added_by_id_.end()) {
      return token->second.content;
    }
    return absl::OutOfRangeError(
        StrCat("token id: found ", id, ", expected one of a vocabulary of ", vocab_size_));
  }
  const SentencePieceModel::Piece& piece = model_.pieces[id];
  switch (piece.type) {
    case SentencePieceModel::Type::kByte: {
      const auto byte = std::find(model_.byte_ids.begin(), model_.byte_ids.end(), id);
      return std::string(1, static_cast<char>(byte - model_.byte_ids.begin()));
    }
    case SentencePieceModel::Type::kUnknown:
      return model_.unknown_surface;
    case SentencePieceModel::Type::kControl:
      return piece.text;
    default:
      return absl::StrReplaceAll(ToAbsl(piece.text), {{ToAbsl(kPieceSpace), " "}});
  }
}

bool SentencePieceTokenizer::IsSpecial(int32_t id) const {
  if (IsPiece(id)) return model_.type(id) == SentencePieceModel::Type::kControl;
  const auto token = added_by_id_.find(id);
  return token != added_by_id_.end() && token->second.special;
}

absl::StatusOr<int32_t> SentencePieceTokenizer::TokenId(std::string_view token) const {
  for (const auto& [id, added] : added_by_id_) {
    if (added.content == token) return id;
  }
  if (const auto id = model_.reserved.Find(token)) return *id;
  if (const auto id = model_.found.Find(token)) return *id;
  return absl::NotFoundError(StrCat("the vocabulary has no token ", Quoted(token)));
}

absl::StatusOr<std::string> SentencePieceTokenizer::Decode(absl::Span<const int32_t> ids,
                                                           DecodeSpecial special) const {
  const SentencePieceModel::Normalization& normalization = model_.normalization;
  // Whether a U+2581 that comes now is the normalizer's, not the text's.
  bool at_start = normalization.add_dummy_prefix || normalization.remove_extra_whitespaces;
  std::string text, bytes;  // byte pieces that make characters together
  for (const int32_t id : ids) {
    NIBBLE_ASSIGN_OR_RETURN(std::string token, TokenBytes(id));
    if (IsPiece(id) && model_.type(id) == SentencePieceModel::Type::kByte) {
      bytes += token;
      continue;
    }
    AppendBytes(bytes, text);
    bytes.clear();
    if (special == DecodeSpecial::kSkip && IsSpecial(id)) continue;
    at_start = at_start && text.empty();
    if (at_start && IsPiece(id) &&
        std::string_view(model_.pieces[id].text).starts_with(kPieceSpace)) {
      token.erase(0, 1);
      at_start = normalization.remove_extra_whitespaces;
    }
    text += token;
  }
  AppendBytes(bytes, text);
  return text;
}

}  // namespace nibble
