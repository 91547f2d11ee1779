#include "quant/pipeline/report.h"

#include <utility>

namespace nibble {
namespace {

Json WeightsJson(const WeightSpec& spec) {
  return {{"format", std::string(FormatName(spec.format))},
          {"asymmetric", spec.asymmetric},
          {"group_size", spec.group_size},
          {"scale", std::string(ScaleConstraintName(spec.constraint))},
          {"m2_rounding", std::string(M2RoundingName(spec.rounding))}};
}

}  // namespace

Json SpecJson(const QuantizeSpec& spec, const std::set<std::string>& excluded) {
  Json json = {{"lorc_rank", spec.lorc_rank},
               {"lorc_metric", spec.lorc_metric == LorcMetric::kInput ? "input" : "weight"},
               {"method", spec.method == Method::kRtn ? "rtn" : "gptq"},
               {"act_order", spec.gptq.act_order},
               {"damping", spec.gptq.damping},
               {"compute", spec.compute == Compute::kF32 ? "f32" : "bf16"},
               {"excluded", excluded}};
  if (spec.weights) json["weights"] = WeightsJson(*spec.weights);
  if (spec.activations) {
    json["activations"] = {{"format", std::string(FormatName(spec.activations->format))},
                           {"asymmetric", spec.activations->asymmetric}};
  }
  return json;
}

Json LayerJson(const LayerReport& report, bool calibrated) {
  Json linears = Json::array();
  for (const LinearReport& linear : report.linears) {
    linears.push_back({{"name", linear.name},
                       {"output_error", calibrated ? Json(linear.output_error) : Json()},
                       {"weight_error", linear.weight_error},
                       {"clamped_groups", linear.clamped_groups},
                       {"damping", linear.damping},
                       {"damping_escalations", linear.damping_escalations},
                       {"seconds", linear.seconds}});
  }
  return {{"layer", report.layer},
          {"seconds", report.seconds},
          {"peak_bytes", report.peak_bytes},
          {"linears", linears}};
}

void ModelReport::AddLayer(const LayerReport& report, int64_t weights, double bits) {
  linear_weights_ += weights;
  linear_bits_ += bits;
  for (const LinearReport& linear : report.linears) {
    error_sum_ += linear.output_error;
    ++linears_;
  }
  layers_.push_back(LayerJson(report, calibrated_));
}

double ModelReport::MeanOutputError() const {
  return linears_ == 0 ? 0 : error_sum_ / static_cast<double>(linears_);
}

QuantizeSummary ModelReport::Summary() const {
  QuantizeSummary summary;
  const double rest_bits = 16.0 * static_cast<double>(rest_weights_);
  if (linear_weights_ > 0) {
    summary.linear_bits_per_weight = linear_bits_ / static_cast<double>(linear_weights_);
  }
  summary.model_bits_per_weight =
      (linear_bits_ + rest_bits) / static_cast<double>(linear_weights_ + rest_weights_);
  summary.mean_output_error = MeanOutputError();
  return summary;
}

Json ModelReport::ToJson(double seconds) const {
  const QuantizeSummary summary = Summary();
  return {{"linear_bits_per_weight", summary.linear_bits_per_weight},
          {"model_bits_per_weight", summary.model_bits_per_weight},
          {"mean_output_error", calibrated_ ? Json(summary.mean_output_error) : Json()},
          {"parameters", linear_weights_ + rest_weights_},
          {"seconds", seconds},
          {"layers", layers_}};
}

}  // namespace nibble
