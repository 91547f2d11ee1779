// UTF-8, code point by code point.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// What stands at the front of some bytes.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // `bytes` bytes that are one code point
    kInvalid,     // `bytes` bytes that one U+FFFD replaces: a maximal subpart (Unicode 3.9)
    kUnfinished,  // all that is left, and the beginning of a character
  };
  Kind kind;
  size_t bytes;
  char32_t code_point;  // of a kCharacter
};
// `text` is not empty.
Utf8Step NextUtf8(std::string_view text);

// The code point before the end of valid, non-empty UTF-8, and its length.
Utf8Step LastUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// U+FFFD for every maximal subpart, as bytes.decode(errors="replace") of Python.
std::string ReplaceInvalidUtf8(std::string_view text);

void AppendUtf8(char32_t code_point, std::string& text);

// Unicode's White_Space property.
bool IsWhiteSpace(char32_t code_point);

}  // namespace nibble
