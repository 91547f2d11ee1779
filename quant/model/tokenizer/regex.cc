#include "quant/model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>

#include "absl/status/status.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

constexpr size_t kMaxPatternBytes = 8192;
// Real patterns need a few steps a match; these stop hostile ones within a second.
constexpr uint32_t kMatchLimit = 5'000'000;
constexpr uint32_t kHeapLimitKiB = 64 * 1024;
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackLimit = size_t{8} << 20;

// \s is White_Space in Oniguruma; PCRE2 counts U+180E too.
constexpr std::string_view kSpaces =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpaces =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

// Walks a pattern once and writes it for PCRE2.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty()) {
      NIBBLE_RETURN_IF_ERROR(in_class_ ? ClassItem() : Item());
    }
    return std::move(out_);
  }

 private:
  absl::Status NotBuilt(std::string_view construct) const {
    return absl::UnimplementedError(
        StrCat("the regular expression construct ", Quoted(construct), " is not built"));
  }
  void Copy(size_t bytes) {
    out_ += rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
  }
  void Replace(size_t bytes, std::string_view by) {
    out_ += by;
    rest_.remove_prefix(bytes);
  }

  absl::Status Item() {
    switch (rest_[0]) {
      case '\\':
        return Escape();
      case '(':
        return Group();
      case '[':
        return OpenClass();
      case '}':
        // a{1,3}+ is a repeated repetition there and a possessive one here.
        if (rest_.starts_with("}+")) return NotBuilt("}+");
        break;
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    for (const std::string_view start : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"}) {
      if (rest_.starts_with(start)) {
        Copy(start.size());
        return absl::OkStatus();
      }
    }
    if (rest_.starts_with("(?") || rest_.starts_with("(*")) return NotBuilt(rest_.substr(0, 4));
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status OpenClass() {
    Copy(rest_.starts_with("[^") ? 2 : 1);
    if (rest_.starts_with(']')) return NotBuilt("[]");
    in_class_ = true;
    return absl::OkStatus();
  }

  absl::Status ClassItem() {
    if (rest_[0] == '\\') return Escape();
    if (rest_[0] == '[') return NotBuilt("a class within a class");
    if (rest_.starts_with("&&")) return NotBuilt("&&");
    if (rest_[0] == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    const char kind = rest_.size() > 1 ? rest_[1] : '\0';
    const std::string_view open = in_class_ ? "" : "[", close = in_class_ ? "" : "]";
    switch (kind) {
      case 's':
        Replace(2, StrCat(open, kSpaces, close));
        return absl::OkStatus();
      case 'S':
        Replace(2, StrCat(open, kNotSpaces, close));
        return absl::OkStatus();
      case 'v':  // one character there, all vertical space here
        Replace(2, "\\x{b}");
        return absl::OkStatus();
      case 'x':
      case 'p':
      case 'P': {
        const size_t end = rest_.find('}');
        if (rest_.substr(2, 1) != "{" || end == std::string_view::npos) {
          return NotBuilt(StrCat(rest_.substr(0, 2), " without braces"));
        }
        Copy(end + 1);
        return absl::OkStatus();
      }
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
        break;
      default:
        if (!std::ispunct(static_cast<unsigned char>(kind))) return NotBuilt(rest_.substr(0, 2));
    }
    Copy(2);
    return absl::OkStatus();
  }

  std::string_view rest_;
  std::string out_;
  bool in_class_ = false;
};

std::string Pcre2Message(int error) {
  PCRE2_UCHAR8 message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

// What searches need besides the pattern: one for each thread, whatever the patterns.
class MatchState {
 public:
  MatchState()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)) {
    if (!ok()) return;
    pcre2_set_match_limit(context_, kMatchLimit);
    pcre2_set_heap_limit(context_, kHeapLimitKiB);
    pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;

  bool ok() const { return data_ != nullptr && context_ != nullptr && stack_ != nullptr; }
  pcre2_match_data* data() const { return data_; }
  pcre2_match_context* context() const { return context_; }

 private:
  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern) {
  return Translator(pattern).Run();
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(StrCat("found a regular expression of ", pattern.size(),
                                             " bytes, expected at most ", kMaxPatternBytes));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string translated, TranslatePattern(pattern));
  NIBBLE_ASSIGN_OR_RETURN(Regex regex, CompileTranslated(translated));
  uint32_t matches_nothing = 0;
  pcre2_pattern_info(regex.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_nothing);
  if (matches_nothing != 0) {
    return absl::InvalidArgumentError(
        StrCat("the regular expression ", Quoted(pattern), " can match the empty text"));
  }
  return regex;
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  if (text.empty() || text.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(StrCat(
        "found a text of ", text.size(), " bytes to split at, expected 1 to ", kMaxPatternBytes));
  }
  std::string pattern;
  for (const char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) pattern += '\\';
    pattern += c;
  }
  return CompileTranslated(pattern);
}

absl::StatusOr<Regex> Regex::CompileTranslated(const std::string& pattern) {
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // In Ruby's syntax ^ and $ are always the ends of a line.
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context.get());
  if (code == nullptr) {
    return absl::InvalidArgumentError(StrCat("the regular expression ", Quoted(pattern),
                                             " does not compile: ", Pcre2Message(error),
                                             " at byte ", offset));
  }
  Regex regex(code);
  // Without a compiler for this machine PCRE2 interprets: slower, and the same matches.
  const int jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  if (jit != 0 && jit != PCRE2_ERROR_JIT_BADOPTION) {
    return absl::ResourceExhaustedError(
        StrCat("the regular expression ", Quoted(pattern), ": ", Pcre2Message(jit)));
  }
  return regex;
}

absl::Status Regex::Split(std::string_view text, PieceSink sink) const {
  thread_local const MatchState state;
  if (!state.ok()) return absl::ResourceExhaustedError("out of memory");
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(state.data());
  size_t done = 0;
  while (done < text.size()) {
    // The text is known to be valid; PCRE2 would check all of it again at every match.
    const int count =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(), done,
                    PCRE2_NO_UTF_CHECK, state.data(), state.context());
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return absl::ResourceExhaustedError(
          StrCat("the tokenizer's regular expression: ", Pcre2Message(count)));
    }
    const size_t begin = found[0], end = found[1];
    if (begin > done)
      NIBBLE_RETURN_IF_ERROR(sink(text.substr(done, begin - done), Piece::kBetween));
    NIBBLE_RETURN_IF_ERROR(sink(text.substr(begin, end - begin), Piece::kMatch));
    done = end;
  }
  if (done < text.size()) NIBBLE_RETURN_IF_ERROR(sink(text.substr(done), Piece::kBetween));
  return absl::OkStatus();
}

}  // namespace nibble
