#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "quant/model/checkpoint/artifact.h"
#include "tests/fuzz/input_file.h"

namespace {

// One folder of this process, with the manifest of each input in turn.
const std::filesystem::path& Folder() {
  static const std::filesystem::path* folder = [] {
    std::string pattern = "/dev/shm/nibble-fuzz-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) abort();
    return new std::filesystem::path(pattern);
  }();
  return *folder;
}

}  // namespace

// A nibble.json, a zero byte, and the safetensors of one quantized matrix "w" of 8 x 64. Whatever
// is accepted has every code, scale and exponent in range.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const uint8_t* end = std::find(data, data + size, 0);
  std::ofstream(Folder() / "nibble.json", std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), end - data);
  const auto spec = nibble::ReadArtifact(Folder(), nibble::Verify::kNone);
  if (!spec.ok() || !spec->weights || end == data + size) return 0;
  std::ofstream(Folder() / "model.safetensors", std::ios::trunc)
      .write(reinterpret_cast<const char*>(end + 1), data + size - end - 1);
  const auto tensors = nibble::TensorSource::Open(Folder());
  if (!tensors.ok()) return 0;
  const auto matrix = nibble::ReadQuantizedMatrix(**tensors, "w", *spec->weights, 8, 64);
  if (matrix.ok() && !matrix->Validate("w").ok()) abort();
  return 0;
}
