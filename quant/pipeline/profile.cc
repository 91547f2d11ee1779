#include "quant/pipeline/profile.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/corpus.h"

namespace nibble {
namespace {

constexpr int64_t kDefaultWindow = 2048;
constexpr int kMostBins = 4096;
constexpr size_t kMostQuantiles = 64;
constexpr int64_t kMostOutliers = 1024;

template <class Found>
absl::Status Refuse(std::string_view field, const Found& found, std::string_view expected) {
  return absl::InvalidArgumentError(StrCat(field, ": found ", found, ", expected ", expected));
}

int64_t WindowTokens(const ProfileSpec& spec, const ModelConfig& config) {
  return spec.window_tokens.value_or(std::min(kDefaultWindow, config.context));
}

absl::Status Check(const ProfileSpec& spec, const ModelConfig& config) {
  const int64_t window = WindowTokens(spec, config);
  if (window < 2 || window > config.context) {
    return Refuse("window", window, StrCat("2 to the model's context of ", config.context));
  }
  if (spec.windows < 1) return Refuse("windows", spec.windows, "1 or more");
  for (const int64_t layer : spec.layers) {
    if (layer < 0 || layer >= config.layers) {
      return Refuse("layers", layer, StrCat("0 to ", config.layers - 1));
    }
  }
  if (spec.histogram_bins < 1 || spec.histogram_bins > kMostBins) {
    return Refuse("histogram_bins", spec.histogram_bins, StrCat("1 to ", kMostBins));
  }
  if (spec.probabilities.size() > kMostQuantiles) {
    return Refuse("quantiles", spec.probabilities.size(), StrCat("at most ", kMostQuantiles));
  }
  for (const double probability : spec.probabilities) {
    if (!(probability >= 0 && probability <= 1)) return Refuse("quantiles", probability, "0 to 1");
  }
  if (!(spec.outlier_ratio > 1)) return Refuse("outlier_ratio", spec.outlier_ratio, "over 1");
  if (spec.outlier_channels < 0 || spec.outlier_channels > kMostOutliers) {
    return Refuse("outlier_channels", spec.outlier_channels, StrCat("0 to ", kMostOutliers));
  }
  const int64_t tokens = spec.windows * window;
  if (spec.placement_token && (*spec.placement_token < 0 || *spec.placement_token >= tokens)) {
    return Refuse("placement_token", *spec.placement_token, StrCat("0 to ", tokens - 1));
  }
  for (const ActivationSpec& format : spec.placement_formats) {
    NIBBLE_RETURN_IF_ERROR(format.Validate());
  }
  return absl::OkStatus();
}

// A token's values, one row after another.
absl::Span<const float> Row(const at::Tensor& x, int64_t row) {
  const int64_t channels = x.size(1);
  return {x.data_ptr<float>() + row * channels, static_cast<size_t>(channels)};
}

// What is gathered of one input of one layer.
struct Gathered {
  std::optional<FirstPass> first;
  std::optional<SecondPass> second;
  std::vector<float> placed;  // the values of the placement token
};
using Inputs = std::map<InputGroup, Gathered>;

class Profiler {
 public:
  Profiler(const ProfileSpec& spec, const DecoderLoader& loader, const ProfileCallback& progress)
      : spec_(spec),
        loader_(loader),
        config_(loader.config()),
        layers_(spec.layers.empty() ? config_.layers : *std::ranges::max_element(spec.layers) + 1),
        progress_(progress) {}

  absl::Status Run(const std::filesystem::path& model) {
    NIBBLE_RETURN_IF_ERROR(Say());
    NIBBLE_RETURN_IF_ERROR(EmbedWindows(model));
    for (; layer_ < layers_; ++layer_) {
      NIBBLE_ASSIGN_OR_RETURN(const DecoderLayer layer, loader_.LoadLayer(layer_));
      const bool wanted = Wanted(spec_.layers, layer_);
      NIBBLE_RETURN_IF_ERROR(wanted ? ProfileLayer(layer) : SkipLayer(layer));
    }
    return Say();
  }

 private:
  // One window on its way through the layers.
  struct Window {
    int64_t first_token = 0;  // among the tokens of all windows
    Batch batch;
    Rotary rotary;
    at::Tensor hidden;  // f32 [tokens, hidden]
  };

  template <class T>
  static bool Wanted(const std::vector<T>& chosen, const T& value) {
    return chosen.empty() || std::ranges::find(chosen, value) != chosen.end();
  }

  absl::Status Say(const ActivationProfile* finished = nullptr) {
    return progress_({.layers_done = finished == nullptr ? layer_ : layer_ + 1,
                      .layers = layers_,
                      .finished = finished});
  }

  absl::Status EmbedWindows(const std::filesystem::path& model) {
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(model));
    NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                            ReadCorpus(spec_.corpus, spec_.first_text, spec_.last_text));
    NIBBLE_ASSIGN_OR_RETURN(
        const auto windows,
        CutWindows(*tokenizer, config_.vocab, text, WindowTokens(spec_, config_), spec_.windows));
    NIBBLE_ASSIGN_OR_RETURN(const DecoderEnds ends, loader_.LoadEnds());
    int64_t first_token = 0;
    for (const std::vector<int32_t>& tokens : windows) {
      const auto length = static_cast<int64_t>(tokens.size());
      const Segment whole = {.first_row = 0, .length = length, .position = 0, .blocks = {}};
      Batch batch = {tokens, {whole}};
      Rotary rotary = MakeRotary(config_, batch);
      at::Tensor hidden = Embed(config_, ends, batch);
      windows_.push_back({first_token, std::move(batch), std::move(rotary), std::move(hidden)});
      first_token += length;
    }
    return absl::OkStatus();
  }

  // The window after the layer. `observe` is given the inputs to profile, f32 on the host.
  using Observe = std::function<absl::Status(InputGroup, const at::Tensor&)>;
  absl::StatusOr<at::Tensor> Pass(const DecoderLayer& layer, const Window& window,
                                  const Observe& observe) {
    NIBBLE_RETURN_IF_ERROR(Say());
    absl::Status status;
    at::Tensor hidden = RunLayer(config_, layer, window.hidden, window.batch, window.rotary,
                                 nullptr, [&](InputGroup input, const at::Tensor& x) {
                                   if (!status.ok() || !Wanted(spec_.inputs, input)) return;
                                   status = observe(input, x.to(at::kCPU, at::kFloat).contiguous());
                                 });
    NIBBLE_RETURN_IF_ERROR(status);
    return hidden;
  }

  absl::Status SkipLayer(const DecoderLayer& layer) {
    for (Window& window : windows_) {
      NIBBLE_RETURN_IF_ERROR(Say());
      window.hidden = RunLayer(config_, layer, window.hidden, window.batch, window.rotary, nullptr);
    }
    return absl::OkStatus();
  }

  absl::Status ProfileLayer(const DecoderLayer& layer) {
    Inputs inputs;
    for (const Window& window : windows_) {
      NIBBLE_RETURN_IF_ERROR(Pass(layer, window, [&](InputGroup input, const at::Tensor& x) {
                               return AddFirst(window, x, input, inputs[input]);
                             }).status());
    }
    for (auto& [input, gathered] : inputs) {
      gathered.second.emplace(*gathered.first, spec_.histogram_bins, spec_.probabilities);
    }
    for (Window& window : windows_) {
      NIBBLE_ASSIGN_OR_RETURN(window.hidden,
                              Pass(layer, window, [&](InputGroup input, const at::Tensor& x) {
                                for (int64_t row = 0; row < x.size(0); ++row)
                                  inputs[input].second->Add(Row(x, row));
                                return absl::OkStatus();
                              }));
    }
    for (const auto& [input, gathered] : inputs) {
      NIBBLE_ASSIGN_OR_RETURN(const ActivationProfile profile, Finish(layer, input, gathered));
      NIBBLE_RETURN_IF_ERROR(Say(&profile));
    }
    return absl::OkStatus();
  }

  absl::Status AddFirst(const Window& window, const at::Tensor& x, InputGroup input,
                        Gathered& gathered) const {
    if (!gathered.first) gathered.first.emplace(x.size(1));
    for (int64_t row = 0; row < x.size(0); ++row) {
      if (const absl::Status added = gathered.first->Add(Row(x, row)); !added.ok()) {
        return absl::FailedPreconditionError(StrCat("the input ", InputName(input), " of layer ",
                                                    layer_, ", token ", window.first_token + row,
                                                    ": ", added.message()));
      }
    }
    const int64_t placed = spec_.placement_token.value_or(-1) - window.first_token;
    if (placed >= 0 && placed < x.size(0)) {
      const absl::Span<const float> values = Row(x, placed);
      gathered.placed.assign(values.begin(), values.end());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ActivationProfile> Finish(const DecoderLayer& layer, InputGroup input,
                                           const Gathered& gathered) const {
    const FirstPass& first = *gathered.first;
    ActivationProfile profile;
    profile.layer = layer_;
    profile.input = input;
    for (const LayerLinear& linear : layer.linears) {
      if (linear.input == input) profile.linears.push_back(linear.name);
    }
    profile.tokens = static_cast<int64_t>(first.token_ranges().size());
    profile.channels = static_cast<int64_t>(first.channel_magnitudes().size());
    profile.min = first.min();
    profile.max = first.max();
    profile.moments = first.moments();
    profile.histogram = gathered.second->histogram();
    NIBBLE_ASSIGN_OR_RETURN(profile.quantiles, gathered.second->Quantiles());
    profile.token_range_quantiles = Quantiles(first.token_ranges(), spec_.probabilities);
    profile.outliers =
        FindOutliers(first.channel_magnitudes(), spec_.outlier_ratio, spec_.outlier_channels);
    if (spec_.placement_token) {
      for (const ActivationSpec& format : spec_.placement_formats) {
        profile.placements.push_back(PlaceValues(format, gathered.placed));
      }
    }
    return profile;
  }

  const ProfileSpec& spec_;
  const DecoderLoader& loader_;
  const ModelConfig& config_;
  const int64_t layers_;
  const ProfileCallback& progress_;
  std::vector<Window> windows_;
  int64_t layer_ = 0;
};

}  // namespace

std::string_view InputName(InputGroup input) {
  switch (input) {
    case InputGroup::kAttentionIn:
      return "qkv";
    case InputGroup::kAttentionOut:
      return "attention_output";
    case InputGroup::kMlpIn:
      return "mlp_input";
    case InputGroup::kMlpOut:
      return "mlp_output";
  }
  return "";
}

ValuePlacement PlaceValues(const ActivationSpec& format, absl::Span<const float> values) {
  ValuePlacement placement;
  placement.format = format;
  placement.scale = ComputeActivationScale(format, values);
  placement.values.assign(values.begin(), values.end());
  placement.rounded = placement.values;
  RoundActivationRow(format, absl::MakeSpan(placement.rounded));
  double squares = 0;
  double error_squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = double{placement.rounded[i]} - double{values[i]};
    error_squares += error * error;
    squares += double{values[i]} * double{values[i]};
  }
  placement.mean_squared_error = error_squares / static_cast<double>(values.size());
  placement.relative_error = squares == 0 ? 0 : std::sqrt(error_squares / squares);
  return placement;
}

absl::Status ProfileActivations(const ProfileSpec& spec, const std::filesystem::path& model,
                                const ProfileCallback& progress) {
  return CatchTorch([&]() -> absl::Status {
    const c10::InferenceMode inference;
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                            DecoderLoader::Open(model, spec.compute, {}, Purpose::kRun));
    NIBBLE_RETURN_IF_ERROR(Check(spec, loader->config()));
    return Profiler(spec, *loader, progress).Run(model);
  });
}

}  // namespace nibble
