#include "quant/model/checkpoint/artifact.h"

#include <cstring>
#include <system_error>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

constexpr char kManifest[] = "nibble.json";
constexpr int64_t kFormatVersion = 1;

absl::StatusOr<WeightSpec> ParseWeights(const JsonObject& json) {
  WeightSpec spec;
  NIBBLE_ASSIGN_OR_RETURN(const std::string format, json.String("format"));
  NIBBLE_ASSIGN_OR_RETURN(spec.format, ParseFormat(format));
  NIBBLE_ASSIGN_OR_RETURN(spec.asymmetric, json.Bool("asymmetric"));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, json.Int("group_size", {-1, 1024}));
  spec.group_size = static_cast<int>(group);
  NIBBLE_ASSIGN_OR_RETURN(const std::string constraint, json.String("scale"));
  NIBBLE_ASSIGN_OR_RETURN(spec.constraint, ParseScaleConstraint(constraint));
  NIBBLE_ASSIGN_OR_RETURN(const std::string rounding, json.String("m2_rounding"));
  NIBBLE_ASSIGN_OR_RETURN(spec.rounding, ParseM2Rounding(rounding));
  NIBBLE_RETURN_IF_ERROR(spec.Validate());
  return spec;
}

absl::StatusOr<ActivationSpec> ParseActivations(const JsonObject& json) {
  ActivationSpec spec;
  NIBBLE_ASSIGN_OR_RETURN(const std::string format, json.String("format"));
  NIBBLE_ASSIGN_OR_RETURN(spec.format, ParseFormat(format));
  NIBBLE_ASSIGN_OR_RETURN(spec.asymmetric, json.Bool("asymmetric"));
  NIBBLE_RETURN_IF_ERROR(spec.Validate());
  return spec;
}

absl::StatusOr<ArtifactSpec> ParseSpec(const JsonObject& json) {
  ArtifactSpec spec;
  if (json.Has("weights")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject weights, json.Object("weights"));
    NIBBLE_ASSIGN_OR_RETURN(spec.weights, ParseWeights(weights));
  }
  if (json.Has("activations")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject activations, json.Object("activations"));
    NIBBLE_ASSIGN_OR_RETURN(spec.activations, ParseActivations(activations));
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t rank, json.Int("lorc_rank", {0, 1 << 20}));
  spec.lorc_rank = static_cast<int>(rank);
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* excluded, json.Array("excluded"));
  for (const Json& name : *excluded) {
    if (!name.is_string()) return json.Unexpected("excluded", "names");
    spec.excluded.push_back(name.get<std::string>());
  }
  return spec;
}

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos;
}

// Weights that came beside the artifact's own would be read unchecked.
absl::Status CheckAllListed(const std::filesystem::path& folder, const JsonObject& files) {
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.ends_with(".safetensors") || files.Has(name)) continue;
    return absl::DataLossError(
        StrCat(entry->path().string(), ": found the file, expected its sha256 in ", kManifest));
  }
  if (error) return absl::InternalError(StrCat(folder.string(), ": ", error.message()));
  return absl::OkStatus();
}

absl::Status CheckSums(const std::filesystem::path& folder, const JsonObject& files) {
  NIBBLE_RETURN_IF_ERROR(CheckAllListed(folder, files));
  for (const auto& [name, expected] : files.fields()) {
    if (!IsPlainFileName(name) || !expected.is_string()) {
      return files.Unexpected(name, "a plain file name and its sha256");
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string found, Sha256File(folder / name));
    if (found != expected.get<std::string>()) {
      return absl::DataLossError(StrCat((folder / name).string(), ": found sha256 ", found,
                                        ", expected ", expected.get<std::string>()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> FindTyped(const TensorSource& tensors, const std::string& name,
                                     DType dtype, const std::vector<int64_t>& shape) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors.Find(name, shape));
  if (view.dtype == dtype) return view;
  return absl::InvalidArgumentError(
      StrCat(name, ": found dtype ", DTypeName(view.dtype), ", expected ", DTypeName(dtype)));
}

template <class T>
NamedTensor MakeTensor(std::string name, DType dtype, std::vector<int64_t> shape,
                       const std::vector<T>& values) {
  NamedTensor tensor{std::move(name), dtype, std::move(shape), {}};
  tensor.bytes.resize(values.size() * sizeof(T));
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

// Calls visit(suffix, dtype, shape, buffer) for every buffer that `matrix`'s spec has.
template <class Matrix, class Visit>
void VisitTensors(Matrix& matrix, const Visit& visit) {
  const int64_t rows = matrix.rows;
  const int64_t groups = matrix.groups();
  const int64_t row_bytes = (matrix.cols * FormatBits(matrix.spec.format) + 7) / 8;
  visit(".weight_codes", DType::kU8, std::vector<int64_t>{rows, row_bytes}, matrix.codes);
  switch (matrix.spec.constraint) {
    case ScaleConstraint::kNone:
      visit(".weight_scale", DType::kF32, std::vector<int64_t>{rows, groups}, matrix.scale);
      break;
    case ScaleConstraint::kM1:
      visit(".weight_scale", DType::kI8, std::vector<int64_t>{rows, groups}, matrix.exponent);
      break;
    case ScaleConstraint::kM2:
      visit(".weight_row_scale", DType::kF32, std::vector<int64_t>{rows}, matrix.row_scale);
      visit(".weight_k", DType::kU8, std::vector<int64_t>{rows, (groups + 1) / 2}, matrix.k);
      break;
  }
  if (matrix.spec.asymmetric) {
    visit(".weight_zero", DType::kU8, std::vector<int64_t>{rows, groups}, matrix.zero);
  }
}

}  // namespace

bool IsArtifact(const std::filesystem::path& folder) {
  std::error_code error;
  return std::filesystem::is_regular_file(folder / kManifest, error);
}

absl::StatusOr<ArtifactSpec> ReadArtifact(const std::filesystem::path& folder, Verify verify) {
  NIBBLE_ASSIGN_OR_RETURN(const Json parsed, ReadJsonFile(folder / kManifest));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject manifest,
                          JsonObject::From(parsed, (folder / kManifest).string()));
  NIBBLE_RETURN_IF_ERROR(manifest.Int("format_version", {kFormatVersion, kFormatVersion}).status());
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject spec, manifest.Object("spec"));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject files, manifest.Object("files"));
  if (verify == Verify::kChecksums) NIBBLE_RETURN_IF_ERROR(CheckSums(folder, files));
  return ParseSpec(spec);
}

absl::StatusOr<QuantizedMatrix> ReadQuantizedMatrix(const TensorSource& tensors,
                                                    std::string_view name, const WeightSpec& spec,
                                                    int64_t rows, int64_t cols) {
  QuantizedMatrix matrix;
  matrix.spec = spec;
  matrix.rows = rows;
  matrix.cols = cols;
  // First that all are there: no memory is taken for a shape that the files do not have.
  std::vector<TensorView> views;
  absl::Status status;
  VisitTensors(matrix, [&](std::string_view suffix, DType dtype, const std::vector<int64_t>& shape,
                           const auto&) {
    if (!status.ok()) return;
    const auto view = FindTyped(tensors, StrCat(name, suffix), dtype, shape);
    status = view.status();
    if (view.ok()) views.push_back(*view);
  });
  NIBBLE_RETURN_IF_ERROR(status);
  matrix = MakeQuantizedMatrix(spec, rows, cols);
  auto view = views.begin();
  VisitTensors(matrix, [&](std::string_view, DType, const std::vector<int64_t>&, auto& buffer) {
    std::memcpy(buffer.data(), view->bytes.data(), buffer.size() * sizeof(buffer[0]));
    tensors.Release(*view++);
  });
  NIBBLE_RETURN_IF_ERROR(matrix.Validate(name));
  return matrix;
}

std::vector<NamedTensor> QuantizedMatrixTensors(std::string_view name,
                                                const QuantizedMatrix& matrix) {
  std::vector<NamedTensor> tensors;
  VisitTensors(matrix, [&](std::string_view suffix, DType dtype, std::vector<int64_t> shape,
                           const auto& buffer) {
    tensors.push_back(MakeTensor(StrCat(name, suffix), dtype, std::move(shape), buffer));
  });
  return tensors;
}

}  // namespace nibble
