// GPT-2's alphabet: every byte has one printable character that stands for it in a vocabulary.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// "\n" -> "Ċ".
std::string BytesToAlphabet(std::string_view bytes);
// "Ċ" -> "\n"; nothing when a character is not of the alphabet.
std::optional<std::string> AlphabetToBytes(std::string_view text);

}  // namespace nibble
