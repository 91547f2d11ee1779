#include "tests/bench/model/scheme.h"

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

absl::Status Refuse(const std::string& word) {
  return absl::InvalidArgumentError(StrCat("scheme: found the word \"", word, "\""));
}

absl::Status ApplyFlag(const std::string& word, QuantizeSpec& spec) {
  if (word == "rtn") {
    spec.method = Method::kRtn;
  } else if (word == "natural") {
    spec.gptq.act_order = false;
  } else if (word == "input") {
    spec.lorc_metric = LorcMetric::kInput;
  } else if (word == "wasym" && spec.weights) {
    spec.weights->asymmetric = true;
  } else if (word == "aasym" && spec.activations) {
    spec.activations->asymmetric = true;
  } else {
    return Refuse(word);
  }
  return absl::OkStatus();
}

absl::Status ApplyFormat(const std::string& name, const std::string& value, QuantizeSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const Format format, ParseFormat(value));
  if (name == "w") spec.weights = WeightSpec{.format = format};
  if (name == "a") spec.activations = ActivationSpec{.format = format};
  return absl::OkStatus();
}

absl::Status ApplyPair(const std::string& name, const std::string& value, QuantizeSpec& spec) {
  if (name == "w" || name == "a") return ApplyFormat(name, value, spec);
  if (name == "lorc" && absl::SimpleAtoi(value, &spec.lorc_rank)) return absl::OkStatus();
  if (name == "rotate" && absl::SimpleAtoi(value, &spec.rotate_seed.emplace())) {
    return absl::OkStatus();
  }
  if (name == "iter" && absl::SimpleAtoi(value, &spec.lorc_iterations)) return absl::OkStatus();
  if (name == "search" && (value == "none" || value == "diagonal")) {
    spec.scale_search = value == "none" ? ScaleSearch::kNone : ScaleSearch::kDiagonal;
    return absl::OkStatus();
  }
  if (!spec.weights) return Refuse(name);
  if (name == "group" && absl::SimpleAtoi(value, &spec.weights->group_size)) {
    return absl::OkStatus();
  }
  if (name == "scale") {
    NIBBLE_ASSIGN_OR_RETURN(spec.weights->constraint, ParseScaleConstraint(value));
    return absl::OkStatus();
  }
  if (name == "round") {
    NIBBLE_ASSIGN_OR_RETURN(spec.weights->rounding, ParseM2Rounding(value));
    return absl::OkStatus();
  }
  return Refuse(StrCat(name, "=", value));
}

}  // namespace

absl::StatusOr<QuantizeSpec> ParseScheme(std::string_view text) {
  QuantizeSpec spec;
  const std::vector<std::string> words = absl::StrSplit(ToAbsl(text), ',');
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    NIBBLE_RETURN_IF_ERROR(equals == std::string::npos
                               ? ApplyFlag(word, spec)
                               : ApplyPair(word.substr(0, equals), word.substr(equals + 1), spec));
  }
  return spec;
}

}  // namespace nibble
