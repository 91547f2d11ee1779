#include "quant/pipeline/report.h"

#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

Json WeightsJson(const WeightSpec& spec) {
  return {{"format", std::string(FormatName(spec.format))},
          {"asymmetric", spec.asymmetric},
          {"group_size", spec.group_size},
          {"scale", std::string(ScaleConstraintName(spec.constraint))},
          {"m2_rounding", std::string(M2RoundingName(spec.rounding))}};
}

Json LinearReportJson(const LinearReport& report) {
  return {{"name", report.name},
          {"output_error", report.output_error ? Json(*report.output_error) : Json()},
          {"weight_error", report.weight_error},
          {"clamped_groups", report.clamped_groups},
          {"damping", report.damping},
          {"damping_escalations", report.damping_escalations},
          {"seconds", report.seconds}};
}

absl::StatusOr<LinearReport> ParseLinearReport(const Json& json, const std::string& where) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::From(json, where));
  LinearReport report;
  NIBBLE_ASSIGN_OR_RETURN(report.name, object.String("name"));
  if (object.Has("output_error")) {
    NIBBLE_ASSIGN_OR_RETURN(report.output_error, object.Number("output_error", {}));
  }
  NIBBLE_ASSIGN_OR_RETURN(report.weight_error, object.Number("weight_error", {}));
  NIBBLE_ASSIGN_OR_RETURN(report.clamped_groups, object.Int("clamped_groups", {.min = 0}));
  NIBBLE_ASSIGN_OR_RETURN(report.damping, object.Number("damping", {}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t raised,
                          object.Int("damping_escalations", {.min = 0, .max = INT32_MAX}));
  report.damping_escalations = static_cast<int>(raised);
  NIBBLE_ASSIGN_OR_RETURN(report.seconds, object.Number("seconds", {}));
  return report;
}

}  // namespace

Json SpecJson(const QuantizeSpec& spec, const std::set<std::string>& excluded) {
  Json json = {{"lorc_rank", spec.lorc_rank},
               {"lorc_metric", spec.lorc_metric == LorcMetric::kInput ? "input" : "weight"},
               {"lorc_iterations", spec.lorc_iterations},
               {"scale_search", spec.scale_search == ScaleSearch::kDiagonal ? "diagonal" : "none"},
               {"method", spec.method == Method::kRtn ? "rtn" : "gptq"},
               {"act_order", spec.gptq.act_order},
               {"damping", spec.gptq.damping},
               {"rotate", spec.rotate_seed.has_value()},
               {"compute", spec.compute == Compute::kF32 ? "f32" : "bf16"},
               {"excluded", excluded}};
  if (spec.rotate_seed) json["rotate_seed"] = *spec.rotate_seed;
  if (spec.weights) json["weights"] = WeightsJson(*spec.weights);
  if (spec.activations) {
    json["activations"] = {{"format", std::string(FormatName(spec.activations->format))},
                           {"asymmetric", spec.activations->asymmetric}};
  }
  return json;
}

Json LayerReportJson(const LayerReport& report) {
  Json linears = Json::array();
  for (const LinearReport& linear : report.linears) linears.push_back(LinearReportJson(linear));
  return {{"layer", report.layer},
          {"weights", report.weights},
          {"bits", report.bits},
          {"seconds", report.seconds},
          {"peak_host_bytes", report.peak_host_bytes},
          {"peak_device_bytes", report.peak_device_bytes},
          {"linears", linears}};
}

absl::StatusOr<LayerReport> ParseLayerReport(const Json& json, const std::string& where) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::From(json, where));
  LayerReport report;
  NIBBLE_ASSIGN_OR_RETURN(report.layer, object.Int("layer", {.min = 0, .max = INT32_MAX}));
  NIBBLE_ASSIGN_OR_RETURN(report.weights, object.Int("weights", {.min = 0}));
  NIBBLE_ASSIGN_OR_RETURN(report.bits, object.Number("bits", {.min = 0}));
  NIBBLE_ASSIGN_OR_RETURN(report.seconds, object.Number("seconds", {}));
  NIBBLE_ASSIGN_OR_RETURN(report.peak_host_bytes, object.Int("peak_host_bytes", {.min = 0}));
  NIBBLE_ASSIGN_OR_RETURN(report.peak_device_bytes, object.Int("peak_device_bytes", {.min = 0}));
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* linears, object.Array("linears"));
  for (const Json& linear : *linears) {
    NIBBLE_ASSIGN_OR_RETURN(LinearReport parsed,
                            ParseLinearReport(linear, StrCat(where, ": linears")));
    report.linears.push_back(std::move(parsed));
  }
  return report;
}

void ModelReport::AddLayer(const LayerReport& report) {
  linear_weights_ += report.weights;
  linear_bits_ += report.bits;
  layer_seconds_ += report.seconds;
  for (const LinearReport& linear : report.linears) {
    if (!linear.output_error) continue;
    error_sum_ += *linear.output_error;
    ++calibrated_linears_;
  }
  layers_.push_back(LayerReportJson(report));
}

double ModelReport::MeanOutputError() const {
  return calibrated_linears_ == 0 ? 0 : error_sum_ / static_cast<double>(calibrated_linears_);
}

double ModelReport::MeanLayerSeconds() const {
  return layers_.empty() ? 0 : layer_seconds_ / static_cast<double>(layers_.size());
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
          {"mean_output_error", calibrated_linears_ > 0 ? Json(summary.mean_output_error) : Json()},
          {"parameters", linear_weights_ + rest_weights_},
          {"seconds", seconds},
          {"layers", layers_}};
}

}  // namespace nibble
