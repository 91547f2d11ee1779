#include "quant/pipeline/layer_quantizer.h"

#include <ATen/ATen.h>

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
    const at::Tensor original = linear.weights.weight.to(at::kFloat);
    at::Tensor effective;
    if (spec_.weights) {
      NIBBLE_ASSIGN_OR_RETURN(effective, QuantizeWeights(linear, original, report, out));
    } else {
      out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".weight"), original));
      out.bits += 16.0 * static_cast<double>(original.numel());
      effective = original.to(at::kBFloat16).to(at::kFloat);
      linear.weights.weight = effective.to(linear.weights.weight.scalar_type());
    }
    out.weights += original.numel();
    linear.activation = spec_.activations;
    report.weight_error = RelativeWeightError(original, effective);
    if (calibrated()) {
      report.output_error = RelativeOutputError(original, effective, HessianOf(linear.input));
    }
    report.seconds = absl::ToDoubleSeconds(absl::Now() - began);
    return report;
  }

 private:
  bool calibrated() const { return !hessians_.empty(); }

  // What linears with the same input share: they follow each other.
  struct Shared {
    InputGroup group;
    at::Tensor hessian;  // undefined when nothing was calibrated
    std::optional<GptqFactor> factor;
  };
  Shared& SharedOf(InputGroup group) {
    if (!shared_ || shared_->group != group) {
      shared_.reset();  // before the next one takes memory
      shared_ = Shared{group, calibrated() ? hessians_.at(group).matrix() : at::Tensor(), {}};
    }
    return *shared_;
  }
  const at::Tensor& HessianOf(InputGroup group) { return SharedOf(group).hessian; }

  // One way to store a linear.
  struct Attempt {
    QuantizedLinear quantized;
    LorcFactors lorc;
    at::Tensor values;   // f32 [N, K], of `quantized`
    at::Tensor product;  // f32 [N, K], of `lorc`; undefined without

    at::Tensor Effective() const { return product.defined() ? values + product : values; }
  };

  // Returns what the forward multiplies by from now on, LoRC's product included: f32 [N, K].
  absl::StatusOr<at::Tensor> QuantizeWeights(LayerLinear& linear, const at::Tensor& original,
                                             LinearReport& report, QuantizedLayer& out) {
    NIBBLE_ASSIGN_OR_RETURN(const Attempt best, BestAttempt(linear, original));
    const QuantizedLinear& quantized = best.quantized;
    report.clamped_groups = quantized.clamped_groups;
    report.damping = quantized.damping;
    report.damping_escalations = quantized.damping_escalations;
    out.bits += quantized.matrix.BitsPerWeight() * static_cast<double>(original.numel());
    for (NamedTensor& tensor : QuantizedMatrixTensors(linear.name, quantized.matrix)) {
      out.tensors.push_back(std::move(tensor));
    }
    linear.weights.weight = best.values.to(linear.weights.weight.scalar_type());
    if (spec_.lorc_rank > 0) StoreLorc(best.lorc, linear, report, out);
    return best.Effective();
  }

  // Of lorc_iterations, each of which quantizes what the one before leaves to the codes, the first
  // with the least error.
  absl::StatusOr<Attempt> BestAttempt(const LayerLinear& linear, const at::Tensor& original) {
    NIBBLE_ASSIGN_OR_RETURN(Attempt best, Try(linear, original, original));
    if (spec_.lorc_iterations == 1) return best;
    double least = Error(linear, original, best);
    at::Tensor product = best.product;
    for (int i = 1; i < spec_.lorc_iterations; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(Attempt next, Try(linear, original, original - product));
      product = next.product;
      const double error = Error(linear, original, next);
      if (error >= least) continue;
      least = error;
      best = std::move(next);
    }
    return best;
  }

  // The codes are of `target`; LoRC corrects what they leave of `original`.
  absl::StatusOr<Attempt> Try(const LayerLinear& linear, const at::Tensor& original,
                              const at::Tensor& target) {
    Attempt attempt;
    NIBBLE_ASSIGN_OR_RETURN(attempt.quantized, Solve(linear, target));
    attempt.values = Dequantize(attempt.quantized.matrix, original.options());
    if (spec_.lorc_rank == 0) return attempt;
    NIBBLE_ASSIGN_OR_RETURN(attempt.lorc,
                            ComputeLorc(linear.name, original - attempt.values, spec_.lorc_rank,
                                        spec_.lorc_metric, HessianOf(linear.input)));
    attempt.product = attempt.lorc.a.to(at::kFloat).mm(attempt.lorc.b.to(at::kFloat));
    return attempt;
  }

  double Error(const LayerLinear& linear, const at::Tensor& original, const Attempt& attempt) {
    return calibrated()
               ? RelativeOutputError(original, attempt.Effective(), HessianOf(linear.input))
               : RelativeWeightError(original, attempt.Effective());
  }

  // What the search weighs columns by: all alike where nothing was calibrated. Undefined: none.
  at::Tensor ColumnWeights(const LayerLinear& linear, const at::Tensor& w) {
    if (spec_.scale_search == ScaleSearch::kNone) return {};
    return calibrated() ? HessianOf(linear.input).diagonal() : at::ones({w.size(1)}, w.options());
  }

  absl::StatusOr<QuantizedLinear> Solve(const LayerLinear& linear, const at::Tensor& target) {
    const at::Tensor column_weights = ColumnWeights(linear, target);
    if (spec_.method == Method::kRtn) {
      return QuantizeRtn(linear.name, target, *spec_.weights, column_weights);
    }
    auto& [group, hessian, factor] = SharedOf(linear.input);
    if (!factor) {
      NIBBLE_ASSIGN_OR_RETURN(factor, FactorHessian(linear.name, hessian, spec_.gptq));
    }
    return QuantizeGptq(linear.name, target, *factor, *spec_.weights, spec_.gptq, column_weights);
  }

  void StoreLorc(const LorcFactors& factors, LayerLinear& linear, LinearReport& report,
                 QuantizedLayer& out) {
    report.damping_escalations += factors.damping_escalations;
    out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".lorc_a"), factors.a));
    out.tensors.push_back(BFloat16Tensor(StrCat(linear.name, ".lorc_b"), factors.b));
    out.bits += 16.0 * static_cast<double>(factors.a.numel() + factors.b.numel());
    linear.weights.lorc_a = factors.a.to(linear.weights.weight.scalar_type());
    linear.weights.lorc_b = factors.b.to(linear.weights.weight.scalar_type());
  }

  const QuantizeSpec& spec_;
  const Hessians& hessians_;
  std::optional<Shared> shared_;
};

absl::StatusOr<at::Tensor> ReadFloats(const TensorSource& tensors, const std::string& name,
                                      const at::TensorOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors.Find(name));
  at::Tensor tensor = at::empty(view.shape, at::kFloat);
  NIBBLE_RETURN_IF_ERROR(
      WidenToFloat(name, view, absl::MakeSpan(tensor.data_ptr<float>(), tensor.numel())));
  return tensor.to(options);
}

}  // namespace

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
    const at::TensorOptions options = weight.options();
    if (!spec.weights) {
      NIBBLE_ASSIGN_OR_RETURN(weight, ReadFloats(tensors, StrCat(linear.name, ".weight"), options));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizedMatrix matrix,
        ReadQuantizedMatrix(tensors, linear.name, *spec.weights, weight.size(0), weight.size(1)));
    weight = Dequantize(matrix, options);
    if (spec.lorc_rank == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(linear.weights.lorc_a,
                            ReadFloats(tensors, StrCat(linear.name, ".lorc_a"), options));
    NIBBLE_ASSIGN_OR_RETURN(linear.weights.lorc_b,
                            ReadFloats(tensors, StrCat(linear.name, ".lorc_b"), options));
  }
  return absl::OkStatus();
}

}  // namespace nibble
