#include "quant/model/cuda/linear_group.h"

#include <algorithm>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/kernels/device/bf16.h"
#include "quant/kernels/device/launch.h"
#include "quant/kernels/device/true_values.h"
#include "quant/kernels/device/uploaded_matrix.h"

namespace nibble {
namespace {

bool IsE4m3(const std::optional<ActivationSpec>& spec) {
  return spec && spec->format == Format::kE4M3;
}

const __nv_bfloat16* DataOrNull(const at::Tensor& tensor) {
  return tensor.defined() ? Bf16(tensor) : nullptr;
}

}  // namespace

GroupInput MakeCodes(int64_t tokens, int64_t cols, at::Device device) {
  return {.codes = at::empty({tokens, cols}, at::TensorOptions(at::kByte).device(device)),
          .scales = at::empty({tokens}, at::TensorOptions(at::kFloat).device(device))};
}

GroupInput MakeValues(int64_t tokens, int64_t cols, at::Device device) {
  return {.values = at::empty({tokens, cols}, at::TensorOptions(at::kBFloat16).device(device))};
}

absl::StatusOr<LinearGroup> LinearGroup::Make(absl::Span<const LayerLinear* const> linears,
                                              at::Device device) {
  NIBBLE_ASSIGN_OR_RETURN(std::optional<LinearGroup> prepared, Prepare(linears, device));
  if (prepared) return *std::move(prepared);
  LinearGroup group;
  for (const LayerLinear* linear : linears) {
    const LinearWeights& weights = linear->weights;
    const at::TensorOptions options = at::TensorOptions(at::kBFloat16).device(device);
    group.true_values_.push_back(
        {.weight = linear->matrix ? DequantizeOnCuda(*linear->matrix, options) : weights.weight,
         .bias = weights.bias,
         .lorc_a = weights.lorc_a,
         .lorc_b = weights.lorc_b,
         .activation = linear->activation});
    group.rows_ += group.true_values_.back().weight.size(0);
    group.cols_ = group.true_values_.back().weight.size(1);
  }
  return group;
}

// Nothing where the kernels lack the format.
absl::StatusOr<std::optional<LinearGroup>> LinearGroup::Prepare(
    absl::Span<const LayerLinear* const> linears, at::Device device) {
  std::vector<UploadedMatrix> uploaded;
  std::vector<w4a8::Segment> segments;
  LinearGroup group;
  uploaded.reserve(linears.size());
  for (const LayerLinear* linear : linears) {
    if (!linear->matrix || !IsE4m3(linear->activation)) return std::nullopt;
    const LinearWeights& weights = linear->weights;
    uploaded.emplace_back(*linear->matrix, device);
    segments.push_back(
        {.weight = uploaded.back().view(),
         .bias = DataOrNull(weights.bias),
         .lorc_a = DataOrNull(weights.lorc_a),
         .lorc_b = DataOrNull(weights.lorc_b),
         .rank = weights.lorc_a.defined() ? static_cast<int>(weights.lorc_a.size(1)) : 0});
    group.rows_ += linear->matrix->rows;
    group.cols_ = linear->matrix->cols;
  }
  const absl::StatusOr<size_t> bytes = w4a8::PreparedBytes(segments);
  if (bytes.status().code() == absl::StatusCode::kInvalidArgument || group.cols_ % 16 != 0) {
    return std::nullopt;
  }
  NIBBLE_RETURN_IF_ERROR(bytes.status());
  const CudaScope scope(device);
  group.memory_ =
      at::empty({static_cast<int64_t>(*bytes)}, at::TensorOptions(at::kByte).device(device));
  NIBBLE_ASSIGN_OR_RETURN(group.prepared_,
                          w4a8::Prepare(segments, group.memory_.data_ptr(), scope.stream()));
  return group;
}

int64_t LinearGroup::weight_bytes() const {
  if (prepared_) return static_cast<int64_t>(memory_.nbytes());
  int64_t bytes = 0;
  for (const TrueValues& linear : true_values_) {
    for (const at::Tensor& part : {linear.weight, linear.bias, linear.lorc_a, linear.lorc_b}) {
      if (part.defined()) bytes += static_cast<int64_t>(part.nbytes());
    }
  }
  return bytes;
}

size_t LinearGroup::WorkspaceBytes(int64_t tokens) const {
  return prepared_ ? w4a8::WorkspaceBytes(*prepared_, tokens) : 0;
}

at::Tensor LinearGroup::Run(const GroupInput& x, const at::Tensor& workspace) const {
  if (prepared_) {
    const CudaScope scope(x.codes.device());
    const int64_t tokens = x.codes.size(0);
    at::Tensor y = MakeValues(tokens, rows_, x.codes.device()).values;
    const w4a8::LinearCall call = {.x = x.codes.const_data_ptr<uint8_t>(),
                                   .x_pitch = cols_,
                                   .x_scale = x.scales.const_data_ptr<float>(),
                                   .tokens = tokens,
                                   .y = MutableBf16(y),
                                   .workspace = workspace.data_ptr(),
                                   .overlap_previous = true};
    ThrowIfError(w4a8::Launch(*prepared_, call, scope.stream()));
    return y;
  }
  std::vector<at::Tensor> outputs;
  for (const TrueValues& linear : true_values_) {
    const at::Tensor input =
        linear.activation ? RoundRowsOnCuda(*linear.activation, x.values) : x.values;
    at::Tensor y = at::linear(input, linear.weight, linear.bias);
    if (linear.lorc_a.defined()) {
      y = y + at::linear(at::linear(input, linear.lorc_b), linear.lorc_a);
    }
    outputs.push_back(std::move(y));
  }
  return outputs.size() == 1 ? outputs[0] : at::cat(outputs, 1);
}

}  // namespace nibble
