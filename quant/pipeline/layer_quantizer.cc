#include "quant/pipeline/layer_quantizer.h"

#include <ATen/ATen.h>

#include <cstring>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/artifact.h"

namespace nibble {
namespace {

class LayerQuantizer {
 public:
  LayerQuantizer(const QuantizeSpec& spec, const Hessians& hessians)
      : spec_(spec), hessians_(hessians) {}

  absl::StatusOr<LinearReport> Quantize(LayerLinear& linear, QuantizedLayer& out) {
    const absl::Time began = absl::Now();
    LinearReport report;
    report.name = linear.name;
    const at::Tensor original = linear.weights.weight;
    if (spec_.weights) {
      NIBBLE_RETURN_IF_ERROR(QuantizeWeights(linear, report, out));
    } else {
      out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".weight"), original));
      out.bits += 16.0 * static_cast<double>(original.numel());
      linear.weights.weight = original.to(at::kBFloat16).to(at::kFloat);
    }
    out.weights += original.numel();
    linear.activation = spec_.activations;
    at::Tensor effective = linear.weights.weight;
    if (linear.weights.lorc_a.defined()) {
      effective = effective + at::mm(linear.weights.lorc_a, linear.weights.lorc_b);
    }
    report.weight_error = RelativeWeightError(original, effective);
    if (const Hessian* hessian = Find(linear.input)) {
      report.output_error = RelativeOutputError(original, effective, hessian->matrix());
    }
    report.seconds = absl::ToDoubleSeconds(absl::Now() - began);
    return report;
  }

 private:
  const Hessian* Find(InputGroup group) const {
    const auto found = hessians_.find(group);
    return found == hessians_.end() ? nullptr : &found->second;
  }

  absl::Status QuantizeWeights(LayerLinear& linear, LinearReport& report, QuantizedLayer& out) {
    const at::Tensor original = linear.weights.weight;
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedLinear quantized, Solve(linear));
    report.clamped_groups = quantized.clamped_groups;
    report.damping = quantized.damping;
    report.damping_escalations = quantized.damping_escalations;
    out.bits += quantized.matrix.BitsPerWeight() * static_cast<double>(original.numel());
    for (NamedTensor& tensor : QuantizedMatrixTensors(linear.name, quantized.matrix)) {
      out.tensors.push_back(std::move(tensor));
    }
    linear.weights.weight = Dequantize(quantized.matrix);
    return spec_.lorc_rank > 0 ? AddLorc(linear, original, report, out) : absl::OkStatus();
  }

  absl::StatusOr<QuantizedLinear> Solve(const LayerLinear& linear) {
    if (spec_.method == Method::kRtn) {
      return QuantizeRtn(linear.name, linear.weights.weight, *spec_.weights);
    }
    std::optional<GptqFactor>& factor = factors_[linear.input];
    if (!factor) {
      NIBBLE_ASSIGN_OR_RETURN(factor,
                              FactorHessian(linear.name, Find(linear.input)->matrix(), spec_.gptq));
    }
    return QuantizeGptq(linear.name, linear.weights.weight, *factor, *spec_.weights, spec_.gptq);
  }

  absl::Status AddLorc(LayerLinear& linear, const at::Tensor& original, LinearReport& report,
                       QuantizedLayer& out) {
    const Hessian* hessian = Find(linear.input);
    NIBBLE_ASSIGN_OR_RETURN(
        const LorcFactors factors,
        ComputeLorc(linear.name, original - linear.weights.weight, spec_.lorc_rank,
                    spec_.lorc_metric, hessian == nullptr ? at::Tensor() : hessian->matrix()));
    report.damping_escalations += factors.damping_escalations;
    out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".lorc_a"), factors.a));
    out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".lorc_b"), factors.b));
    out.bits += 16.0 * static_cast<double>(factors.a.numel() + factors.b.numel());
    linear.weights.lorc_a = factors.a.to(at::kFloat);
    linear.weights.lorc_b = factors.b.to(at::kFloat);
    return absl::OkStatus();
  }

  const QuantizeSpec& spec_;
  const Hessians& hessians_;
  std::map<InputGroup, std::optional<GptqFactor>> factors_;
};

absl::StatusOr<at::Tensor> ReadFloats(const TensorSource& tensors, const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors.Find(name));
  at::Tensor tensor = at::empty(view.shape, at::kFloat);
  NIBBLE_RETURN_IF_ERROR(
      WidenToFloat(name, view, absl::MakeSpan(tensor.data_ptr<float>(), tensor.numel())));
  return tensor;
}

}  // namespace

NamedTensor BFloat16Tensor(std::string name, const at::Tensor& tensor) {
  const at::Tensor half = tensor.to(at::kBFloat16).contiguous();
  NamedTensor out{std::move(name), DType::kBF16, half.sizes().vec(), {}};
  out.bytes.resize(half.nbytes());
  std::memcpy(out.bytes.data(), half.data_ptr(), out.bytes.size());
  return out;
}

absl::StatusOr<QuantizedLayer> QuantizeLayer(const QuantizeSpec& spec,
                                             const std::set<std::string>& excluded,
                                             const Hessians& hessians, DecoderLayer& layer,
                                             const std::function<absl::Status()>& step) {
  LayerQuantizer quantizer(spec, hessians);
  QuantizedLayer out;
  for (LayerLinear& linear : layer.linears) {
    if (excluded.contains(linear.name)) {
      out.weights += linear.weights.weight.numel();
      out.bits += 16.0 * static_cast<double>(linear.weights.weight.numel());
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(step());
    NIBBLE_ASSIGN_OR_RETURN(LinearReport report, quantizer.Quantize(linear, out));
    out.linears.push_back(std::move(report));
  }
  return out;
}

absl::Status RestoreLayer(const QuantizeSpec& spec, const std::set<std::string>& excluded,
                          const TensorSource& tensors, DecoderLayer& layer) {
  for (LayerLinear& linear : layer.linears) {
    if (excluded.contains(linear.name)) continue;
    linear.activation = spec.activations;
    at::Tensor& weight = linear.weights.weight;
    if (!spec.weights) {
      NIBBLE_ASSIGN_OR_RETURN(weight, ReadFloats(tensors, StrCat(linear.name, ".weight")));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizedMatrix matrix,
        ReadQuantizedMatrix(tensors, linear.name, *spec.weights, weight.size(0), weight.size(1)));
    weight = Dequantize(matrix);
    if (spec.lorc_rank == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(linear.weights.lorc_a,
                            ReadFloats(tensors, StrCat(linear.name, ".lorc_a")));
    NIBBLE_ASSIGN_OR_RETURN(linear.weights.lorc_b,
                            ReadFloats(tensors, StrCat(linear.name, ".lorc_b")));
  }
  return absl::OkStatus();
}

}  // namespace nibble
