#include <algorithm>
#include <cstdlib>

#include "quant/base/utf8.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "tests/fuzz/input_folder.h"

// A tokenizer_config.json, a zero byte, and the content of a message. Whatever is accepted renders
// it as valid UTF-8.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const uint8_t* end = std::find(data, data + size, 0);
  nibble::WriteInput("tokenizer_config.json", data, static_cast<size_t>(end - data));
  const auto chat = nibble::ChatTemplate::Load(nibble::InputFolder());
  if (!chat.ok()) return 0;
  const std::string content(end, data + size);
  const auto text = chat->Render({{"system", content}, {"user", content}});
  if (!text.ok() || !nibble::IsValidUtf8(*text)) abort();
  return 0;
}
