#include "quant/pipeline/corpus.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

constexpr size_t kMaxCorpusBytes = size_t{4} << 30;

absl::StatusOr<std::string> LineText(std::string_view line, const std::string& where) {
  NIBBLE_ASSIGN_OR_RETURN(const Json parsed, ParseJson(line, where));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::From(parsed, where));
  return object.String("text");
}

// The texts first..last of JSON lines joined by one space.
absl::StatusOr<std::string> JoinLines(std::string_view content, const std::string& name,
                                      int64_t first, int64_t last) {
  std::string joined;
  int64_t texts = 0;
  int64_t number = 0;
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    ++texts;
    if (texts < first || (last != 0 && texts > last)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, LineText(line, StrCat(name, " line ", number)));
    if (texts > std::max<int64_t>(first, 1)) joined += ' ';
    joined += text;
  }
  if (texts < std::max(first, last)) {
    const bool late = texts < first;
    return absl::OutOfRangeError(StrCat(late ? "corpus.first_text" : "corpus.last_text", ": found ",
                                        late ? first : last, ", expected at most ", texts,
                                        ", the texts of ", name));
  }
  return joined;
}

}  // namespace

absl::StatusOr<std::string> ReadCorpus(const std::filesystem::path& file, int64_t first_text,
                                       int64_t last_text) {
  NIBBLE_ASSIGN_OR_RETURN(std::string content, ReadTextFile(file, kMaxCorpusBytes));
  const std::string name = file.filename().string();
  if (file.extension() == ".jsonl") return JoinLines(content, name, first_text, last_text);
  if (file.extension() != ".txt") {
    return absl::InvalidArgumentError(
        StrCat("corpus: found ", name, ", expected a .txt or .jsonl file"));
  }
  if (first_text != 0 || last_text != 0) {
    return absl::InvalidArgumentError(
        StrCat("corpus range: found one for ", name, ", expected a .jsonl"));
  }
  return content;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> CutWindows(const Tokenizer& tokenizer,
                                                             int64_t vocab, std::string_view text,
                                                             int64_t window_tokens,
                                                             int64_t max_windows) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          tokenizer.Encode(text, SpecialTokens::kAdd));
  if (const auto most = std::ranges::max_element(tokens); most != tokens.end() && *most >= vocab) {
    return absl::InvalidArgumentError(StrCat("tokenizer: found the token id ", *most,
                                             " in the text, expected 0 to ", vocab - 1,
                                             ", the model's vocabulary"));
  }
  const int64_t available = static_cast<int64_t>(tokens.size()) / window_tokens;
  if (available < std::max<int64_t>(max_windows, 1)) {
    return absl::InvalidArgumentError(StrCat("windows: found text for ", available, " of ",
                                             window_tokens, " tokens, expected at least ",
                                             std::max<int64_t>(max_windows, 1)));
  }
  std::vector<std::vector<int32_t>> windows;
  for (int64_t i = 0; i < (max_windows == 0 ? available : max_windows); ++i) {
    const auto begin = tokens.begin() + i * window_tokens;
    windows.emplace_back(begin, begin + window_tokens);
  }
  return windows;
}

}  // namespace nibble
