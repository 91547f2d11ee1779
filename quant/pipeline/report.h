// What an artifact says about its making: report.json and the spec of config.json and nibble.json.
// Private to pipeline/.
#pragma once

#include <set>
#include <string>

#include "quant/model/checkpoint/json.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

Json SpecJson(const QuantizeSpec& spec, const std::set<std::string>& excluded);
// `calibrated` says whether there are output errors.
Json LayerJson(const LayerReport& report, bool calibrated);

// Sums over the model.
class ModelReport {
 public:
  explicit ModelReport(bool calibrated) : calibrated_(calibrated) {}

  // `weights` of the layer's linears, quantized or not, and the `bits` that store them.
  void AddLayer(const LayerReport& report, int64_t weights, double bits);
  // Weights that stay in bf16 beside the layers' linears.
  void AddRest(int64_t weights) { rest_weights_ += weights; }

  double MeanOutputError() const;  // 0 where nothing was calibrated
  // Without bytes and seconds.
  QuantizeSummary Summary() const;
  Json ToJson(double seconds) const;

 private:
  const bool calibrated_;
  int64_t linears_ = 0;
  double error_sum_ = 0;
  double linear_bits_ = 0;
  int64_t linear_weights_ = 0;
  int64_t rest_weights_ = 0;
  Json layers_ = Json::array();
};

}  // namespace nibble
