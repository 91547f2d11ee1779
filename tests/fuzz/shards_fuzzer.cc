#include <cstdlib>

#include "quant/model/checkpoint/safetensors.h"
#include "tests/fuzz/input_folder.h"

// A model.safetensors.index.json beside one shard that has the tensors "a" and "b". Whatever is
// accepted names both, and finds them.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool shard_written = [] {
    const std::vector<nibble::NamedTensor> tensors = {
        {.name = "a", .dtype = nibble::DType::kU8, .shape = {1}, .bytes = {1}},
        {.name = "b", .dtype = nibble::DType::kU8, .shape = {1}, .bytes = {2}}};
    return nibble::WriteSafetensors(nibble::InputFolder() / "one.safetensors", tensors).ok();
  }();
  if (!shard_written) abort();
  nibble::WriteInput("model.safetensors.index.json", data, size);
  const auto source = nibble::TensorSource::Open(nibble::InputFolder());
  if (!source.ok()) return 0;
  if ((*source)->Names() != std::vector<std::string>{"a", "b"}) abort();
  for (const std::string& name : (*source)->Names()) {
    if (!(*source)->Find(name, {1}).ok()) abort();
  }
  return 0;
}
