#include <vector>

#include "quant/model/checkpoint/safetensors.h"
#include "tests/fuzz/input_file.h"

// Whatever is accepted can be read to its last byte.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const nibble::InputFile file(data, size);
  const auto opened = nibble::SafetensorsFile::Open(file.path());
  if (!opened.ok()) return 0;
  for (const auto& [name, view] : (*opened)->tensors()) {
    if (static_cast<int64_t>(view.bytes.size()) != view.elements() * DTypeBytes(view.dtype))
      abort();
    std::vector<float> values(static_cast<size_t>(view.elements()));
    const auto widened = nibble::WidenToFloat(name, view, absl::MakeSpan(values));
    if (widened.code() == absl::StatusCode::kInternal) abort();
  }
  return 0;
}
