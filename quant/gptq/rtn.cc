#include <algorithm>
#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/gptq.h"
#include "quant/gptq/on_cuda.h"
#include "quant/gptq/rows.h"
#include "quant/gptq/scale_search.h"
#include "quant/kernels/device/true_values.h"

namespace nibble {

absl::Status CheckWeights(const std::string& name, const at::Tensor& w, const WeightSpec& spec) {
  if (const absl::Status status = spec.Validate(); !status.ok()) {
    return absl::Status(status.code(), StrCat(name, ": ", status.message()));
  }
  if (w.dim() != 2 || w.scalar_type() != at::kFloat || w.numel() == 0) {
    return absl::InvalidArgumentError(
        StrCat(name, ": weight has ", w.dim(), " dimensions, ", w.numel(), " elements of type ",
               at::toString(w.scalar_type()), "; expected a float matrix that is not empty"));
  }
  if (w.is_cuda() && w.isfinite().all().item<bool>()) return absl::OkStatus();
  const at::Tensor flat = w.cpu().contiguous();
  return CheckFinite(name, absl::MakeConstSpan(flat.const_data_ptr<float>(), flat.numel()));
}

absl::Status CheckSearch(const std::string& name, const at::Tensor& w, const WeightSpec& spec,
                         const at::Tensor& column_weights) {
  if (!column_weights.defined()) return absl::OkStatus();
  if (spec.asymmetric) {
    return absl::InvalidArgumentError(
        StrCat(name, ": found asymmetric weights, expected symmetric ones to search scales for"));
  }
  if (column_weights.dim() == 1 && column_weights.size(0) == w.size(1) &&
      column_weights.scalar_type() == at::kFloat && column_weights.device() == w.device() &&
      column_weights.isfinite().logical_and(column_weights.ge(0)).all().item<bool>()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(StrCat(name, ": found ", column_weights.numel(),
                                           " column weights, expected ", w.size(1),
                                           " finite floats, at least 0"));
}

std::vector<RowScales> ScalesOfRows(const WeightSpec& spec, const at::Tensor& w,
                                    const at::Tensor& column_weights) {
  if (column_weights.defined()) return UnpackScales(SearchScales(spec, w, column_weights));
  std::vector<RowScales> scales;
  for (int64_t row = 0; row < w.size(0); ++row) {
    scales.push_back(ComputeRowScales(spec, RowSpan(w, row)));
  }
  return scales;
}

absl::Span<const float> RowSpan(const at::Tensor& matrix, int64_t row) {
  return absl::MakeConstSpan(matrix.const_data_ptr<float>() + row * matrix.size(1), matrix.size(1));
}

QuantizedLinear PackRows(const WeightSpec& spec, int64_t rows, int64_t cols,
                         absl::Span<const uint8_t> codes, absl::Span<const RowScales> scales) {
  QuantizedLinear result;
  result.matrix = MakeQuantizedMatrix(spec, rows, cols);
  for (int64_t row = 0; row < rows; ++row) {
    StoreRow(result.matrix, row, codes.subspan(row * cols, cols), scales[row]);
    result.clamped_groups += scales[row].clamped;
  }
  return result;
}

absl::StatusOr<QuantizedLinear> QuantizeRtn(const std::string& name, const at::Tensor& w,
                                            const WeightSpec& spec,
                                            const at::Tensor& column_weights) {
  return CatchTorch([&]() -> absl::StatusOr<QuantizedLinear> {
    c10::InferenceMode guard;
    NIBBLE_RETURN_IF_ERROR(CheckWeights(name, w, spec));
    NIBBLE_RETURN_IF_ERROR(CheckSearch(name, w, spec, column_weights));
    const at::Tensor weights = w.contiguous();
    if (w.is_cuda()) return RoundOnCuda(spec, weights, column_weights);
    const int64_t rows = w.size(0);
    const int64_t cols = w.size(1);
    const int64_t width = GroupWidth(cols, spec.group_size);
    std::vector<uint8_t> codes(rows * cols);
    const std::vector<RowScales> scales = ScalesOfRows(spec, weights, column_weights);
    for (int64_t row = 0; row < rows; ++row) {
      const absl::Span<const float> values = RowSpan(weights, row);
      for (int64_t c = 0; c < cols; ++c) {
        const uint8_t zero = spec.asymmetric ? scales[row].zero[c / width] : 0;
        codes[row * cols + c] = QuantizeWeight(spec, values[c], scales[row].scale[c / width], zero);
      }
    }
    return PackRows(spec, rows, cols, codes, scales);
  });
}

at::Tensor Dequantize(const QuantizedMatrix& matrix, const at::TensorOptions& options) {
  c10::InferenceMode guard;
  if (options.device().is_cuda()) return DequantizeOnCuda(matrix, options);
  at::Tensor values = at::empty({matrix.rows, matrix.cols}, at::kFloat);
  float* data = values.mutable_data_ptr<float>();
  for (int64_t row = 0; row < matrix.rows; ++row) {
    matrix.DequantizeRow(row, absl::MakeSpan(data + row * matrix.cols, matrix.cols));
  }
  return values;
}

namespace {

double SquaredNorm(const at::Tensor& x) { return x.square().sum(at::kDouble).item<double>(); }

// trace(X H X^T).
double OutputEnergy(const at::Tensor& x, const at::Tensor& hessian) {
  return x.mm(hessian).mul_(x).sum(at::kDouble).item<double>();
}

// 0 / 0 is no error.
double Ratio(double error, double whole) { return error == 0 ? 0 : error / whole; }

}  // namespace

double RelativeOutputError(const at::Tensor& w, const at::Tensor& w_hat,
                           const at::Tensor& hessian) {
  c10::InferenceMode guard;
  return Ratio(OutputEnergy(w - w_hat, hessian), OutputEnergy(w, hessian));
}

double RelativeWeightError(const at::Tensor& w, const at::Tensor& w_hat) {
  c10::InferenceMode guard;
  return std::sqrt(Ratio(SquaredNorm(w - w_hat), SquaredNorm(w)));
}

}  // namespace nibble
