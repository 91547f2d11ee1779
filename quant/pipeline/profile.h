// What goes into the linears of a model's decoder layers: its distribution and outliers
// (ZeroQuant-FP's figure 1), and what formats make of one token's values (figure 2). Torch-free, so
// that the server can include it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "quant/base/compute.h"
#include "quant/formats/formats.h"
#include "quant/model/decoder/input_group.h"
#include "quant/pipeline/activation_statistics.h"

namespace nibble {

std::string_view InputName(InputGroup input);  // "qkv" "attention_output" "mlp_input" "mlp_output"

struct ProfileSpec {
  std::filesystem::path corpus;  // .txt or .jsonl
  int64_t first_text = 0;        // 1-based, inclusive; 0: from the first (.jsonl only)
  int64_t last_text = 0;         // inclusive; 0: to the last
  int64_t windows = 16;
  std::optional<int64_t> window_tokens;  // absent: 2048, or the context where that is less
  Compute compute = Compute::kBf16;
  std::vector<int64_t> layers;     // empty: all
  std::vector<InputGroup> inputs;  // empty: all
  int histogram_bins = 256;
  // Where quantiles are taken; at most 64.
  std::vector<double> probabilities = {0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1};
  double outlier_ratio = 20;
  int64_t outlier_channels = 32;
  std::optional<int64_t> placement_token;  // 0-based among the windows' tokens; absent: none
  std::vector<ActivationSpec> placement_formats;
};

// One token's values as a format has them.
struct ValuePlacement {
  ActivationSpec format;
  ActivationScale scale;
  std::vector<float> values;   // [channels] as they are
  std::vector<float> rounded;  // [channels]
  double mean_squared_error = 0;
  double relative_error = 0;  // ||rounded - values|| / ||values||; 0 when all values are 0
};
ValuePlacement PlaceValues(const ActivationSpec& format, absl::Span<const float> values);

// The values that go into one group of linears, over all tokens.
struct ActivationProfile {
  int64_t layer = 0;
  InputGroup input = InputGroup::kAttentionIn;
  std::vector<std::string> linears;  // that read it
  int64_t tokens = 0;
  int64_t channels = 0;
  double min = 0;
  double max = 0;
  Moments moments;
  std::vector<double> quantiles;              // at ProfileSpec::probabilities
  std::vector<int64_t> histogram;             // bins of equal width from min to max
  std::vector<double> token_range_quantiles;  // at the same probabilities
  std::vector<OutlierChannel> outliers;
  std::vector<ValuePlacement> placements;
};

struct ProfileProgress {
  int64_t layers_done = 0;
  int64_t layers = 0;                           // to pass through
  const ActivationProfile* finished = nullptr;  // set when one has just ended
};
// Called between steps (at least once a window and layer); a non-OK status stops the work with it.
using ProfileCallback = std::function<absl::Status(const ProfileProgress&)>;

// Passes the corpus's windows through the model, one layer in memory at a time, with unrounded
// observations; every profiled layer is passed twice. INVALID_ARGUMENT and OUT_OF_RANGE with field,
// found, expected; FAILED_PRECONDITION for values that are not finite.
absl::Status ProfileActivations(const ProfileSpec& spec, const std::filesystem::path& model,
                                const ProfileCallback& progress);

}  // namespace nibble
