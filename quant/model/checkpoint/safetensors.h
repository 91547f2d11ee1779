// Safetensors files: reading by mmap (one file, or shards by index) and writing.
// Format: https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

enum class DType : uint8_t { kF32, kF16, kBF16, kI64, kI32, kI8, kU8, kBool };
std::string_view DTypeName(DType dtype);  // "F32", ...
int64_t DTypeBytes(DType dtype);

// A tensor inside a mapped file; valid while its file or TensorSource lives.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> bytes;  // little endian, row-major, not necessarily aligned
  int64_t elements() const;
};

// One mapped file. Every entry is checked: offsets inside the file and without overlap or gap,
// sizes that match shape and dtype, no duplicate names, a header of at most 100 MB.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const absl::flat_hash_map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  SafetensorsFile() = default;
  std::filesystem::path path_;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  absl::flat_hash_map<std::string, TensorView> tensors_;
};

// All tensors of a checkpoint folder: model.safetensors, or the shards of
// model.safetensors.index.json.
class TensorSource {
 public:
  static absl::StatusOr<std::unique_ptr<TensorSource>> Open(const std::filesystem::path& folder);
  // Of one safetensors file, whatever its name.
  static absl::StatusOr<std::unique_ptr<TensorSource>> OpenFile(const std::filesystem::path& file);

  bool Contains(std::string_view name) const;
  // NOT_FOUND with the name when absent.
  absl::StatusOr<TensorView> Find(std::string_view name) const;
  // Same, and INVALID_ARGUMENT with found and expected when the shape differs.
  absl::StatusOr<TensorView> Find(std::string_view name, absl::Span<const int64_t> shape) const;
  // Sorted.
  std::vector<std::string> Names() const;
  const std::vector<std::filesystem::path>& files() const { return files_; }
  // Tells the kernel that these bytes are not needed soon.
  void Release(const TensorView& view) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::vector<std::filesystem::path> files_;
  absl::flat_hash_map<std::string, TensorView> tensors_;
};

// Widens an F32, F16 or BF16 tensor into out[elements]; anything else is INVALID_ARGUMENT.
absl::Status WidenToFloat(std::string_view name, const TensorView& view, absl::Span<float> out);
float HalfToFloat(uint16_t bits);
float BFloat16ToFloat(uint16_t bits);
uint16_t FloatToBFloat16(float value);  // nearest even

// A tensor to be written.
struct NamedTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};
// Writes a whole file and syncs it to disk. DATA_LOSS or RESOURCE_EXHAUSTED (disk full) on failure.
absl::Status WriteSafetensors(const std::filesystem::path& path,
                              absl::Span<const NamedTensor> tensors);

}  // namespace nibble
