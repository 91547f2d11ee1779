#include "quant/model/tokenizer/added_tokens.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

// \w of the Rust crate regex.
constexpr std::string_view kWordCharacter = R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}])";

size_t SpacesAtStart(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(bytes));
    if (!IsWhiteSpace(step.code_point)) break;
    bytes += step.bytes;
  }
  return bytes;
}

size_t SpacesAtEnd(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const Utf8Step step = LastUtf8(text.substr(0, text.size() - bytes));
    if (!IsWhiteSpace(step.code_point)) break;
    bytes += step.bytes;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<AddedTokens> AddedTokens::Create(std::vector<AddedToken> tokens) {
  NIBBLE_ASSIGN_OR_RETURN(Regex word, Regex::Compile(kWordCharacter));
  AddedTokens added(std::move(word));
  std::sort(tokens.begin(), tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].content.empty()) {
      return absl::InvalidArgumentError(StrCat("added token ", tokens[i].id, " is empty"));
    }
    if (i > 0 && tokens[i - 1].content == tokens[i].content) {
      return absl::InvalidArgumentError(
          StrCat("the added token ", Quoted(tokens[i].content), " is there twice"));
    }
    Pass& pass = tokens[i].normalized ? added.normalized_ : added.raw_;
    pass.starts[static_cast<uint8_t>(tokens[i].content[0])] = true;
    pass.tokens.push_back(tokens[i]);
  }
  return added;
}

// Narrows the sorted tokens to those that share one more byte with the text, until none is left.
const AddedToken* AddedTokens::Pass::LongestAt(std::string_view text) const {
  if (!starts[static_cast<uint8_t>(text[0])]) return nullptr;
  const AddedToken* longest = nullptr;
  auto begin = tokens.begin(), end = tokens.end();
  for (size_t depth = 0; begin != end; ++depth) {
    if (begin->content.size() == depth) longest = &*begin++;
    if (depth == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[depth]);
    const auto at_depth = [depth](const AddedToken& token) {
      return static_cast<uint8_t>(token.content[depth]);
    };
    begin = std::partition_point(begin, end, [&](const auto& t) { return at_depth(t) < byte; });
    end = std::partition_point(begin, end, [&](const auto& t) { return at_depth(t) == byte; });
  }
  return longest;
}

absl::StatusOr<bool> AddedTokens::TouchesWord(std::string_view before,
                                              std::string_view after) const {
  bool touches = false;
  const auto look = [&](std::string_view, Regex::Piece kind) {
    touches |= kind == Regex::Piece::kMatch;
    return absl::OkStatus();
  };
  if (!before.empty()) {
    NIBBLE_RETURN_IF_ERROR(
        word_.Split(before.substr(before.size() - LastUtf8(before).bytes), look));
  }
  if (!after.empty()) {
    NIBBLE_RETURN_IF_ERROR(word_.Split(after.substr(0, NextUtf8(after).bytes), look));
  }
  return touches;
}

absl::Status AddedTokens::Split(std::string_view text, Sink sink) const {
  return SplitPass(raw_, text, [&](std::string_view piece, const AddedToken* token) {
    return token != nullptr ? sink(piece, token) : SplitPass(normalized_, piece, sink);
  });
}

absl::Status AddedTokens::SplitPass(const Pass& pass, std::string_view text, Sink sink) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = pass.LongestAt(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word) {
      NIBBLE_ASSIGN_OR_RETURN(const bool inside,
                              TouchesWord(text.substr(0, begin), text.substr(end)));
      if (inside) continue;
    }
    if (token->lstrip) begin -= SpacesAtEnd(text.substr(done, begin - done));
    if (token->rstrip) end += SpacesAtStart(text.substr(end));
    if (begin > done) NIBBLE_RETURN_IF_ERROR(sink(text.substr(done, begin - done), nullptr));
    NIBBLE_RETURN_IF_ERROR(sink(text.substr(begin, end - begin), token));
    done = at = end;
  }
  return done < text.size() ? sink(text.substr(done), nullptr) : absl::OkStatus();
}

}  // namespace nibble
