// What is said about a quantization, as JSON: report.json and the spec of config.json and
// nibble.json.
#pragma once

#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

Json SpecJson(const QuantizeSpec& spec, const std::set<std::string>& excluded);

Json LayerReportJson(const LayerReport& report);
// INVALID_ARGUMENT, with `where` in front, for what LayerReportJson does not write.
absl::StatusOr<LayerReport> ParseLayerReport(const Json& json, const std::string& where);

// Sums over the model.
class ModelReport {
 public:
  void AddLayer(const LayerReport& report);
  // Weights that stay in bf16 beside the layers' linears.
  void AddRest(int64_t weights) { rest_weights_ += weights; }

  double MeanOutputError() const;  // 0 where nothing was calibrated
  double MeanLayerSeconds() const;
  // Without bytes and seconds.
  QuantizeSummary Summary() const;
  Json ToJson(double seconds) const;

 private:
  int64_t calibrated_linears_ = 0;
  double error_sum_ = 0;
  double linear_bits_ = 0;
  int64_t linear_weights_ = 0;
  int64_t rest_weights_ = 0;
  double layer_seconds_ = 0;
  Json layers_ = Json::array();
};

}  // namespace nibble
