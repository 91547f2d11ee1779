#include "quant/pipeline/check.h"

#include <fnmatch.h>

#include <algorithm>
#include <memory>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/artifact.h"

namespace nibble {
namespace {

// As many as the largest corpus has bytes.
constexpr int64_t kMostTokens = int64_t{4} << 30;

template <class Found>
absl::Status Refuse(std::string_view field, const Found& found, std::string_view expected) {
  return absl::InvalidArgumentError(StrCat(field, ": found ", found, ", expected ", expected));
}

absl::Status CheckWeights(const QuantizeSpec& spec) {
  if (!spec.weights) {
    if (spec.lorc_rank != 0) {
      return Refuse("lorc_rank", spec.lorc_rank, "0 where weights are not quantized");
    }
    if (!spec.activations) {
      return Refuse("weights", "none, and activations none", "at least one of them quantized");
    }
    return absl::OkStatus();
  }
  return spec.weights->Validate();
}

absl::Status CheckSearch(const QuantizeSpec& spec) {
  if (spec.scale_search == ScaleSearch::kNone) return absl::OkStatus();
  const auto refuse = [](std::string_view with, std::string_view expected) {
    return Refuse("scale_search", StrCat("diagonal with ", with), expected);
  };
  if (!spec.weights) return refuse("weights none", "none where weights are not quantized");
  if (spec.weights->asymmetric) {
    return refuse("weights_asymmetric true", "none: only scales without a zero point are searched");
  }
  if (spec.method == Method::kGptq && !spec.gptq.act_order) {
    return refuse("act_order false",
                  "none: in natural order scales come from weights that are not known yet");
  }
  return absl::OkStatus();
}

absl::Status CheckIterations(const QuantizeSpec& spec) {
  if (spec.lorc_iterations < 1 || spec.lorc_iterations > kMostLorcIterations) {
    return Refuse("lorc_iterations", spec.lorc_iterations, StrCat("1 to ", kMostLorcIterations));
  }
  if (spec.lorc_iterations > 1 && spec.lorc_rank == 0) {
    return Refuse("lorc_iterations", StrCat(spec.lorc_iterations, " with lorc_rank 0"),
                  "1, or a rank over 0 to repeat LoRC with");
  }
  return absl::OkStatus();
}

absl::Status CheckRank(const QuantizeSpec& spec, const std::vector<LinearInfo>& linears,
                       const std::set<std::string>& excluded) {
  if (spec.lorc_rank < 0) return Refuse("lorc_rank", spec.lorc_rank, "0 or more");
  for (const LinearInfo& linear : linears) {
    const int64_t most = std::min(linear.rows, linear.cols);
    if (!excluded.contains(linear.name) && spec.lorc_rank > most) {
      return Refuse("lorc_rank", spec.lorc_rank,
                    StrCat("at most ", most, ", the smaller side of ", linear.name));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCalibration(const QuantizeSpec& spec, int64_t context) {
  const bool needed =
      spec.weights && (spec.method == Method::kGptq ||
                       (spec.lorc_rank > 0 && spec.lorc_metric == LorcMetric::kInput));
  if (spec.calibration.corpus.empty()) {
    return needed ? Refuse("corpus", "none", "one: GPTQ and the input metric calibrate on it")
                  : absl::OkStatus();
  }
  if (spec.calibration.windows < 1) {
    return Refuse("windows", spec.calibration.windows, "1 or more");
  }
  if (spec.calibration.window_tokens < 2 || spec.calibration.window_tokens > context) {
    return Refuse("window", spec.calibration.window_tokens,
                  StrCat("2 to the model's context of ", context));
  }
  const int64_t most = kMostTokens / spec.calibration.window_tokens;
  if (spec.calibration.windows > most) {
    return Refuse("windows", spec.calibration.windows,
                  StrCat("at most ", most, " of ", spec.calibration.window_tokens, " tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::set<std::string>> ExcludedLinears(const std::vector<std::string>& patterns,
                                                      const std::vector<LinearInfo>& linears) {
  std::set<std::string> excluded;
  for (const std::string& pattern : patterns) {
    bool met = false;
    for (const LinearInfo& linear : linears) {
      if (fnmatch(pattern.c_str(), linear.name.c_str(), 0) != 0) continue;
      met = true;
      excluded.insert(linear.name);
    }
    if (!met) {
      return Refuse("exclude", StrCat("'", pattern, "', which meets no linear"),
                    StrCat("a pattern over names like ", linears.front().name));
    }
  }
  if (excluded.size() == linears.size()) {
    return Refuse("exclude", "patterns that meet every linear", "some linear left to quantize");
  }
  return excluded;
}

absl::Status CheckSpecAgainst(const QuantizeSpec& spec, const DecoderLoader& loader) {
  NIBBLE_RETURN_IF_ERROR(CheckWeights(spec));
  NIBBLE_RETURN_IF_ERROR(CheckSearch(spec));
  NIBBLE_RETURN_IF_ERROR(CheckIterations(spec));
  if (spec.activations) NIBBLE_RETURN_IF_ERROR(spec.activations->Validate());
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LinearInfo> linears, loader.Linears());
  NIBBLE_ASSIGN_OR_RETURN(const std::set<std::string> excluded,
                          ExcludedLinears(spec.exclude, linears));
  NIBBLE_RETURN_IF_ERROR(CheckRank(spec, linears, excluded));
  if (spec.rotate_seed) NIBBLE_RETURN_IF_ERROR(loader.CheckRotatable());
  return CheckCalibration(spec, loader.config().context);
}

absl::Status CheckQuantizeSpec(const QuantizeSpec& spec, const std::filesystem::path& checkpoint) {
  if (IsArtifact(checkpoint)) {
    return Refuse("model", "an artifact", "a checkpoint that is not quantized yet");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                          DecoderLoader::Open(checkpoint, spec.compute));
  return CheckSpecAgainst(spec, *loader);
}

}  // namespace nibble
