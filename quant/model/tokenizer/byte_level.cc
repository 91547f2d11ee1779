#include "quant/model/tokenizer/byte_level.h"

#include <array>

#include "quant/base/utf8.h"

namespace nibble {
namespace {

constexpr size_t kAlphabetEnd = 0x144;  // the last is U+0143

struct Alphabet {
  std::array<char32_t, 256> character_of{};
  std::array<int, kAlphabetEnd> byte_of{};
};

// Printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on.
constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte_of.fill(-1);
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    const char32_t character = printable ? static_cast<char32_t>(byte) : next++;
    alphabet.character_of[byte] = character;
    alphabet.byte_of[character] = byte;
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string BytesToAlphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    AppendUtf8(kAlphabet.character_of[static_cast<uint8_t>(byte)], text);
  }
  return text;
}

std::optional<std::string> AlphabetToBytes(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= kAlphabetEnd ||
        kAlphabet.byte_of[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes += static_cast<char>(kAlphabet.byte_of[step.code_point]);
    text.remove_prefix(step.bytes);
  }
  return bytes;
}

}  // namespace nibble
