#include "quant/model/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/tokenizer/byte_level.h"

namespace nibble {
namespace {

constexpr int64_t kMaxId = (int64_t{1} << 22) - 1;
// Words that one Encode remembers, so that common ones are merged once.
constexpr size_t kCachedWords = 1 << 14;
constexpr size_t kLongestCachedWord = 64;

struct PostProcessor {
  std::vector<int32_t> prefix, suffix;
};

absl::Status NotBuilt(const JsonObject& json, std::string_view what, std::string_view built) {
  return absl::UnimplementedError(
      StrCat(json.where(), ": ", what, " is not built; built: ", built));
}

absl::StatusOr<AddedToken> ParseAddedToken(const Json& item, std::string where) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::From(item, std::move(where)));
  AddedToken token;
  NIBBLE_ASSIGN_OR_RETURN(token.content, json.String("content"));
  NIBBLE_ASSIGN_OR_RETURN(token.id, json.Int("id", {.max = kMaxId}));
  NIBBLE_ASSIGN_OR_RETURN(token.special, json.Bool("special", false));
  NIBBLE_ASSIGN_OR_RETURN(token.lstrip, json.Bool("lstrip", false));
  NIBBLE_ASSIGN_OR_RETURN(token.rstrip, json.Bool("rstrip", false));
  NIBBLE_ASSIGN_OR_RETURN(token.single_word, json.Bool("single_word", false));
  NIBBLE_ASSIGN_OR_RETURN(token.normalized, json.Bool("normalized", !token.special));
  return token;
}

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const JsonObject& json) {
  std::vector<AddedToken> tokens;
  if (!json.Has("added_tokens")) return tokens;
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, json.Array("added_tokens"));
  for (const Json& item : *list) {
    NIBBLE_ASSIGN_OR_RETURN(tokens.emplace_back(),
                            ParseAddedToken(item, StrCat(json.where(), ": added_tokens")));
  }
  return tokens;
}

// Only no normalizer at all is built.
absl::Status CheckNormalizer(const JsonObject& json) {
  if (!json.Has("normalizer")) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject normalizer, json.Object("normalizer"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, normalizer.String("type"));
  if (type == "Sequence") {
    NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, normalizer.Array("normalizers"));
    if (list->empty()) return absl::OkStatus();
  }
  return NotBuilt(normalizer, StrCat("the normalizer ", Quoted(type)), "none");
}

absl::Status CheckDecoder(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject decoder, json.Object("decoder"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, decoder.String("type"));
  if (type == "ByteLevel") return absl::OkStatus();
  return NotBuilt(decoder, StrCat("the decoder ", Quoted(type)), "ByteLevel");
}

// "$A" and the ids around it; a template further out in a Sequence goes further out here.
absl::Status AddTemplate(const JsonObject& json, int32_t vocab_size, PostProcessor& post) {
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* pieces, json.Array("single"));
  PostProcessor ids;
  bool after_text = false;
  for (const Json& item : *pieces) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject piece,
                            JsonObject::From(item, StrCat(json.where(), ": single")));
    if (piece.Has("Sequence")) {
      if (after_text) return piece.Unexpected("Sequence", "one Sequence only");
      after_text = true;
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject named, piece.Object("SpecialToken"));
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, named.String("id"));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject all, json.Object("special_tokens"));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject token, all.Object(name));
    NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, token.Array("ids"));
    for (const Json& id : *list) {
      NIBBLE_ASSIGN_OR_RETURN((after_text ? ids.suffix : ids.prefix).emplace_back(),
                              JsonInt(id, StrCat(token.where(), ": ids"), {.max = vocab_size - 1}));
    }
  }
  if (!after_text) return json.Unexpected("single", "a list with one Sequence");
  post.prefix.insert(post.prefix.begin(), ids.prefix.begin(), ids.prefix.end());
  post.suffix.insert(post.suffix.end(), ids.suffix.begin(), ids.suffix.end());
  return absl::OkStatus();
}

absl::Status AddPostProcessor(const JsonObject& json, int32_t vocab_size, PostProcessor& post) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, json.String("type"));
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets only
  if (type == "TemplateProcessing") return AddTemplate(json, vocab_size, post);
  if (type != "Sequence") {
    return NotBuilt(json, StrCat("the post-processor ", Quoted(type)),
                    "ByteLevel, TemplateProcessing, Sequence");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* list, json.Array("processors"));
  for (const Json& item : *list) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject processor, JsonObject::From(item, json.where()));
    NIBBLE_RETURN_IF_ERROR(AddPostProcessor(processor, vocab_size, post));
  }
  return absl::OkStatus();
}

// Both halves of a merge, as bytes: ["a", "b"], or "a b" in older files.
absl::StatusOr<std::pair<std::string, std::string>> ParseMerge(const Json& item,
                                                               std::string_view where) {
  std::string left, right;
  if (item.is_string()) {
    const auto& text = item.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    left = text.substr(0, space);
    if (space != std::string::npos) right = text.substr(space + 1);
  } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
    left = item[0].get_ref<const std::string&>();
    right = item[1].get_ref<const std::string&>();
  }
  const auto left_bytes = AlphabetToBytes(left), right_bytes = AlphabetToBytes(right);
  if (left.empty() || right.empty() || !left_bytes || !right_bytes) {
    return absl::InvalidArgumentError(StrCat(where, ": found ", Quoted(left), " and ",
                                             Quoted(right),
                                             ", expected two tokens of the byte alphabet"));
  }
  return std::pair(*left_bytes, *right_bytes);
}

// What changes how text is encoded and is not built must be off.
absl::Status CheckModelFields(const JsonObject& model) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, model.String("type", "BPE"));
  if (type != "BPE") return NotBuilt(model, StrCat("the model ", Quoted(type)), "BPE");
  NIBBLE_ASSIGN_OR_RETURN(const bool byte_fallback, model.Bool("byte_fallback", false));
  if (byte_fallback) return NotBuilt(model, "byte_fallback", "byte-level tokens");
  NIBBLE_ASSIGN_OR_RETURN(const double dropout, model.Number("dropout", {}, 0));
  if (dropout != 0) return NotBuilt(model, "dropout", "none");
  for (const std::string_view field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string affix, model.String(field, ""));
    if (!affix.empty()) return NotBuilt(model, StrCat(field, " ", Quoted(affix)), "none");
  }
  return absl::OkStatus();
}

}  // namespace

struct BpeTokenizer::Parts {
  std::vector<Token> tokens;
  absl::flat_hash_map<std::string, int32_t> names;
  std::optional<AddedTokens> added;
  std::optional<PreTokenizer> pre_tokenizer;
  std::optional<BpeModel> model;
  PostProcessor post;

  // Gives `id` to a token.
  absl::Status Place(std::string_view where, int64_t id, Token token) {
    if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(id + 1);
    if (tokens[id].present) {
      return absl::InvalidArgumentError(StrCat(where, ": found the id ", id, " for ",
                                               Quoted(tokens[id].bytes), " and ",
                                               Quoted(token.bytes), ", expected one token an id"));
    }
    tokens[id] = std::move(token);
    return absl::OkStatus();
  }

  // The vocabulary: a token that is spelled in the byte alphabet stands for those bytes.
  absl::Status AddVocab(const JsonObject& vocab, BpeModel::Options& options) {
    options.vocab.reserve(vocab.fields().size());
    for (const auto& [name, value] : vocab.fields()) {
      NIBBLE_ASSIGN_OR_RETURN(
          const int64_t id,
          JsonInt(value, StrCat(vocab.where(), ": ", Quoted(name)), {.max = kMaxId}));
      const std::optional<std::string> bytes = AlphabetToBytes(name);
      NIBBLE_RETURN_IF_ERROR(
          Place(vocab.where(), id, {.bytes = bytes.value_or(name), .present = true}));
      (bytes.has_value() ? options.vocab : names).emplace(bytes.value_or(name), id);
    }
    return absl::OkStatus();
  }

  // An added token either repeats an entry of the vocabulary or brings its own id.
  absl::Status AddToken(std::string_view where, const JsonObject& vocab, const AddedToken& token) {
    if (const Json* known = vocab.Get(token.content)) {
      if (*known != token.id) {
        return absl::InvalidArgumentError(StrCat(where, ": added token ", Quoted(token.content),
                                                 ": found the id ", token.id, ", expected ",
                                                 known->dump(), " as in the vocabulary"));
      }
    } else {
      NIBBLE_RETURN_IF_ERROR(Place(where, token.id, {.bytes = token.content, .present = true}));
    }
    names[token.content] = token.id;
    // Its content is what it decodes to, whatever the alphabet says of these characters.
    tokens[token.id].bytes = token.content;
    tokens[token.id].special |= token.special;
    return absl::OkStatus();
  }

  // Ids need not be dense, and what a post-processor adds must have a text.
  absl::Status CheckPresent(const std::string& where, absl::Span<const int32_t> ids) const {
    for (const int32_t id : ids) {
      if (tokens[id].present) continue;
      return absl::InvalidArgumentError(
          StrCat(where, ": found ", id, ", expected the id of a token"));
    }
    return absl::OkStatus();
  }
};

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Parse(const JsonObject& json) {
  Parts parts;
  BpeModel::Options options;
  NIBBLE_RETURN_IF_ERROR(CheckNormalizer(json));
  NIBBLE_RETURN_IF_ERROR(CheckDecoder(json));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject model, json.Object("model"));
  NIBBLE_RETURN_IF_ERROR(CheckModelFields(model));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject pre_tokenizer, json.Object("pre_tokenizer"));
  NIBBLE_ASSIGN_OR_RETURN(parts.pre_tokenizer, PreTokenizer::Parse(pre_tokenizer));

  NIBBLE_ASSIGN_OR_RETURN(const JsonObject vocab, model.Object("vocab"));
  NIBBLE_RETURN_IF_ERROR(parts.AddVocab(vocab, options));
  NIBBLE_ASSIGN_OR_RETURN(options.ignore_merges, model.Bool("ignore_merges", false));
  NIBBLE_ASSIGN_OR_RETURN(options.fuse_unknown, model.Bool("fuse_unk", false));
  if (model.Has("unk_token")) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string unknown, model.String("unk_token"));
    NIBBLE_ASSIGN_OR_RETURN(options.unknown_id, vocab.Int(unknown, {.max = kMaxId}));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* merges, model.Array("merges"));
  for (const Json& merge : *merges) {
    NIBBLE_ASSIGN_OR_RETURN(options.merges.emplace_back(),
                            ParseMerge(merge, StrCat(model.where(), ": merges")));
  }
  NIBBLE_ASSIGN_OR_RETURN(parts.model, BpeModel::Create(std::move(options)));

  NIBBLE_ASSIGN_OR_RETURN(std::vector<AddedToken> added, ParseAddedTokens(json));
  for (const AddedToken& token : added) {
    NIBBLE_RETURN_IF_ERROR(parts.AddToken(json.where(), vocab, token));
  }
  NIBBLE_ASSIGN_OR_RETURN(parts.added, AddedTokens::Create(std::move(added)));
  if (json.Has("post_processor")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject post, json.Object("post_processor"));
    NIBBLE_RETURN_IF_ERROR(
        AddPostProcessor(post, static_cast<int32_t>(parts.tokens.size()), parts.post));
    NIBBLE_RETURN_IF_ERROR(parts.CheckPresent(post.where(), parts.post.prefix));
    NIBBLE_RETURN_IF_ERROR(parts.CheckPresent(post.where(), parts.post.suffix));
  }
  return std::unique_ptr<Tokenizer>(new BpeTokenizer(std::move(parts)));
}

BpeTokenizer::BpeTokenizer(Parts parts)
    : tokens_(std::move(parts.tokens)),
      names_(std::move(parts.names)),
      added_(*std::move(parts.added)),
      pre_tokenizer_(*std::move(parts.pre_tokenizer)),
      model_(*std::move(parts.model)),
      prefix_(std::move(parts.post.prefix)),
      suffix_(std::move(parts.post.suffix)) {}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                          SpecialTokens special) const {
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

absl::Status BpeTokenizer::EncodeStretch(std::string_view text, std::vector<int32_t>& ids) const {
  struct Span {
    size_t begin, end;  // of `ids`
  };
  absl::flat_hash_map<std::string, Span> seen;
  return pre_tokenizer_.Split(text, [&](std::string_view word) {
    const bool cached = word.size() <= kLongestCachedWord;
    if (const auto known = cached ? seen.find(ToAbsl(word)) : seen.end(); known != seen.end()) {
      for (size_t i = known->second.begin; i < known->second.end; ++i) ids.push_back(ids[i]);
      return absl::OkStatus();
    }
    const size_t begin = ids.size();
    model_.Encode(word, ids);
    if (cached && seen.size() < kCachedWords) seen.emplace(word, Span{begin, ids.size()});
    return absl::OkStatus();
  });
}

absl::StatusOr<std::string> BpeTokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size() || !tokens_[id].present) {
    return absl::OutOfRangeError(
        StrCat("token id: found ", id, ", expected one of a vocabulary of ", vocab_size()));
  }
  return tokens_[id].bytes;
}

bool BpeTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && tokens_[id].special;
}

absl::StatusOr<int32_t> BpeTokenizer::TokenId(std::string_view token) const {
  if (const auto name = names_.find(ToAbsl(token)); name != names_.end()) return name->second;
  if (const auto bytes = AlphabetToBytes(token)) {
    if (const auto id = model_.Find(*bytes)) return *id;
  }
  return absl::NotFoundError(StrCat("the vocabulary has no token ", Quoted(token)));
}

}  // namespace nibble
