#include <algorithm>

#include "quant/model/checkpoint/artifact.h"
#include "tests/fuzz/input_folder.h"

// A nibble.json, a zero byte, and the safetensors of one quantized matrix "w" of 8 x 64. Whatever
// is accepted has every code, scale and exponent in range.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const uint8_t* end = std::find(data, data + size, 0);
  nibble::WriteInput("nibble.json", data, static_cast<size_t>(end - data));
  const auto spec = nibble::ReadArtifact(nibble::InputFolder(), nibble::Verify::kNone);
  if (!spec.ok() || !spec->weights || end == data + size) return 0;
  nibble::WriteInput("model.safetensors", end + 1, static_cast<size_t>(data + size - end - 1));
  const auto tensors = nibble::TensorSource::Open(nibble::InputFolder());
  if (!tensors.ok()) return 0;
  const auto matrix = nibble::ReadQuantizedMatrix(**tensors, "w", *spec->weights, 8, 64);
  if (matrix.ok() && !matrix->Validate("w").ok()) abort();
  return 0;
}
