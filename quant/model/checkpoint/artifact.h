// The quantized artifact's tensors and its nibble.json (DESIGN 3), read and written.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/base/sha256.h"
#include "quant/formats/formats.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {

// How an artifact's linears were quantized, from nibble.json's "spec".
struct ArtifactSpec {
  std::optional<WeightSpec> weights;          // absent: weights kept as they were
  std::optional<ActivationSpec> activations;  // absent: not rounded
  int lorc_rank = 0;
  // Names (without ".weight") of the decoder linears left alone.
  std::vector<std::string> excluded;
};

// True if `folder` holds a committed artifact (nibble.json).
bool IsArtifact(const std::filesystem::path& folder);

// Reads nibble.json; sha256 of every listed file is compared when `verify` says so
// (DATA_LOSS with the file's name).
enum class Verify { kNone, kChecksums };
absl::StatusOr<ArtifactSpec> ReadArtifact(const std::filesystem::path& folder, Verify verify);

// The tensors <name>.weight_codes, .weight_scale, .weight_row_scale, .weight_k, .weight_zero,
// checked against shape and range.
absl::StatusOr<QuantizedMatrix> ReadQuantizedMatrix(const TensorSource& tensors,
                                                    std::string_view name, const WeightSpec& spec,
                                                    int64_t rows, int64_t cols);
std::vector<NamedTensor> QuantizedMatrixTensors(std::string_view name,
                                                const QuantizedMatrix& matrix);

}  // namespace nibble
