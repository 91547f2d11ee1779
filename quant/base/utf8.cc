#include "quant/base/utf8.h"

namespace nibble {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The bytes that may follow a lead byte (Unicode, table 3-7): how many, and the range of the first.
struct Lead {
  size_t following;
  uint8_t min, max;
};

Lead LeadOf(uint8_t byte) {
  if (byte >= 0xc2 && byte <= 0xdf) return {1, 0x80, 0xbf};
  if (byte == 0xe0) return {2, 0xa0, 0xbf};
  if (byte == 0xed) return {2, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {2, 0x80, 0xbf};
  if (byte == 0xf0) return {3, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {3, 0x80, 0xbf};
  if (byte == 0xf4) return {3, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return {Utf8Step::Kind::kCharacter, 1, first};
  Lead lead = LeadOf(first);
  if (lead.following == 0) return {Utf8Step::Kind::kInvalid, 1, 0};
  char32_t code_point = first & (0x3fu >> lead.following);
  for (size_t i = 1; i <= lead.following; ++i) {
    if (i == text.size()) return {Utf8Step::Kind::kUnfinished, i, 0};
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte < lead.min || byte > lead.max) return {Utf8Step::Kind::kInvalid, i, 0};
    lead.min = 0x80;
    lead.max = 0xbf;
    code_point = (code_point << 6) | (byte & 0x3fu);
  }
  return {Utf8Step::Kind::kCharacter, lead.following + 1, code_point};
}

Utf8Step LastUtf8(std::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) --start;
  return NextUtf8(text.substr(start));
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.kind != Utf8Step::Kind::kCharacter) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    valid += step.kind == Utf8Step::Kind::kCharacter ? text.substr(0, step.bytes) : kReplacement;
    text.remove_prefix(step.bytes);
  }
  return valid;
}

void AppendUtf8(char32_t code_point, std::string& text) {
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xc0 | (code_point >> 6));
    text += static_cast<char>(0x80 | (code_point & 0x3f));
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xe0 | (code_point >> 12));
    text += static_cast<char>(0x80 | ((code_point >> 6) & 0x3f));
    text += static_cast<char>(0x80 | (code_point & 0x3f));
  } else {
    text += static_cast<char>(0xf0 | (code_point >> 18));
    text += static_cast<char>(0x80 | ((code_point >> 12) & 0x3f));
    text += static_cast<char>(0x80 | ((code_point >> 6) & 0x3f));
    text += static_cast<char>(0x80 | (code_point & 0x3f));
  }
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

}  // namespace nibble
