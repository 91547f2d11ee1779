#include "quant/model/tokenizer/sentencepiece_normalizer.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"

namespace nibble {
namespace {

// A character of 3 bytes becomes 39 at most under NFKC with spaces as U+2581 (U+FDFA).
constexpr size_t kGrowth = 32;
constexpr size_t kMostBytes = size_t{1} << 30;

uint32_t LittleEndian(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// A unit of a double array (darts.h of Darts-clone 0.32).
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t Value(uint32_t unit) { return unit & ((uint32_t{1} << 31) - 1); }
uint32_t Label(uint32_t unit) { return unit & (uint32_t{1} << 31 | 0xff); }
uint32_t Offset(uint32_t unit) { return unit >> 10 << ((unit & uint32_t{1} << 9) >> 6); }

}  // namespace

// The charsmap: the bytes of the double array (uint32), the double array, the replacements.
absl::StatusOr<SentencePieceNormalizer> SentencePieceNormalizer::Create(
    const SentencePieceModel::Normalization& options) {
  SentencePieceNormalizer normalizer;
  normalizer.options_ = options;
  const std::string_view charsmap = options.charsmap;
  if (charsmap.empty()) return normalizer;
  const size_t size = charsmap.size() < 4 ? 0 : LittleEndian(charsmap);
  if (size == 0 || size % 4 != 0 || size >= charsmap.size() - 4 || charsmap.back() != '\0') {
    return absl::InvalidArgumentError(
        StrCat("precompiled_charsmap: found ", charsmap.size(), " bytes with rules of ", size,
               ", expected rules and after them replacements that end in NUL"));
  }
  for (size_t at = 4; at < 4 + size; at += 4) {
    normalizer.rules_.push_back(LittleEndian(charsmap.substr(at)));
  }
  normalizer.replacements_ = 4 + size;
  return normalizer;
}

// Returns the bytes of the longest rule that `text` begins with; 0: none.
size_t SentencePieceNormalizer::LongestRule(std::string_view text, uint32_t& replacement) const {
  size_t longest = 0;
  if (rules_.empty()) return longest;
  uint32_t at = Offset(rules_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    at ^= byte;
    if (at >= rules_.size() || Label(rules_[at]) != byte) break;
    const bool leaf = HasLeaf(rules_[at]);
    at ^= Offset(rules_[at]);
    if (at >= rules_.size()) break;
    if (!leaf) continue;
    longest = i + 1;
    replacement = Value(rules_[at]);
  }
  return longest;
}

SentencePieceNormalizer::Step SentencePieceNormalizer::NextStep(std::string_view text,
                                                                const PieceTrie& kept) const {
  if (const size_t bytes = kept.LongestPrefix(text)) return {bytes, text.substr(0, bytes)};
  uint32_t replacement = 0;
  const size_t bytes = LongestRule(text, replacement);
  if (bytes == 0) {
    const size_t character = NextUtf8(text).bytes;
    return {character, text.substr(0, character)};
  }
  std::string_view becomes = options_.charsmap;
  becomes.remove_prefix(std::min(replacements_ + replacement, becomes.size() - 1));
  return {bytes, becomes.substr(0, becomes.find('\0'))};
}

absl::StatusOr<std::string> SentencePieceNormalizer::Normalize(std::string_view text,
                                                               const PieceTrie& kept) const {
  const std::string_view space = options_.escape_whitespaces ? kPieceSpace : " ";
  const bool trims = options_.remove_extra_whitespaces;
  const size_t most = std::min(kMostBytes, kGrowth * (text.size() + 1));
  while (trims && !text.empty()) {
    const Step step = NextStep(text, kept);
    if (step.becomes != " ") break;
    text.remove_prefix(step.bytes);
  }
  std::string normalized;
  if (text.empty()) return normalized;
  normalized.reserve(text.size() * 3 / 2);
  if (options_.add_dummy_prefix) normalized += space;
  for (bool after_space = trims; !text.empty();) {
    auto [bytes, becomes] = NextStep(text, kept);
    text.remove_prefix(bytes);
    while (after_space && becomes.starts_with(' ')) becomes.remove_prefix(1);
    for (const char byte : becomes) {
      if (byte == ' ') {
        normalized += space;
      } else {
        normalized += byte;
      }
    }
    if (!becomes.empty()) after_space = trims && becomes.ends_with(' ');
    if (normalized.size() > most) {
      return absl::ResourceExhaustedError(
          StrCat("normalized text: found more than ", most, " bytes"));
    }
  }
  while (trims && normalized.ends_with(space)) normalized.erase(normalized.size() - space.size());
  return normalized;
}

}  // namespace nibble
