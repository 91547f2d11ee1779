#include "quant/model/tokenizer/sentencepiece_tokenizer.h"
#include "tests/fuzz/input_folder.h"

// A tokenizer.model. Every id that comes out of a text has bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nibble::WriteInput("tokenizer.model", data, size);
  const auto tokenizer = nibble::SentencePieceTokenizer::Load(nibble::InputFolder());
  if (!tokenizer.ok()) return 0;
  const auto ids =
      (*tokenizer)->Encode("It's 2023, naïve café\n\n  \t<s> \xff ok", nibble::SpecialTokens::kAdd);
  if (!ids.ok()) return 0;
  if (!(*tokenizer)->Decode(*ids, nibble::DecodeSpecial::kKeep).ok()) abort();
  return 0;
}
