#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/bpe_tokenizer.h"

// A tokenizer.json, a zero byte, and a text for it. Every id that comes out has bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const auto document = nibble::ParseJson(input.substr(0, end), "tokenizer.json");
  if (!document.ok()) return 0;
  const auto json = nibble::JsonObject::From(*document, "tokenizer.json");
  if (!json.ok()) return 0;
  const auto tokenizer = nibble::BpeTokenizer::Parse(*json);
  if (!tokenizer.ok()) return 0;
  const std::string text =
      "It's 2023, naïve café\n\n  \t<s>" + std::string(input.substr(std::min(end + 1, size)));
  const auto ids = (*tokenizer)->Encode(text, nibble::SpecialTokens::kAdd);
  if (!ids.ok()) return 0;
  if (!(*tokenizer)->Decode(*ids, nibble::DecodeSpecial::kKeep).ok()) abort();
  return 0;
}
