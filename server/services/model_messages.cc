#include "server/services/model_messages.h"

#include <string>

#include "absl/strings/ascii.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"
#include "quant/pipeline/report.h"
#include "server/jobs/job_spec.h"

namespace nibble {
namespace {

google::protobuf::Timestamp TimeMessage(absl::Time time) {
  google::protobuf::Timestamp message;
  const int64_t nanos = absl::ToUnixNanos(time);
  message.set_seconds(nanos / 1'000'000'000);
  message.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return message;
}

// The enum value of a name as nibble.json writes it: "m2" for SCALE_CONSTRAINT_M2.
template <class Enum, class Parse>
absl::StatusOr<Enum> ParseEnum(const JsonObject& json, const char* field, const char* prefix,
                               const Parse& parse) {
  NIBBLE_ASSIGN_OR_RETURN(std::string name, json.String(field));
  for (char& c : name) c = absl::ascii_toupper(static_cast<unsigned char>(c));
  Enum value;
  if (!parse(prefix + name, &value)) return json.Unexpected(field, "a value of the API");
  return value;
}

absl::Status ReadWeights(const JsonObject& json, v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const auto format,
                          ParseEnum<v1::Format>(json, "format", "FORMAT_", v1::Format_Parse));
  NIBBLE_ASSIGN_OR_RETURN(const bool asymmetric, json.Bool("asymmetric"));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, json.Int("group_size", {.min = -1, .max = 1024}));
  NIBBLE_ASSIGN_OR_RETURN(const auto scale,
                          ParseEnum<v1::ScaleConstraint>(json, "scale", "SCALE_CONSTRAINT_",
                                                         v1::ScaleConstraint_Parse));
  NIBBLE_ASSIGN_OR_RETURN(
      const auto rounding,
      ParseEnum<v1::M2Rounding>(json, "m2_rounding", "M2_ROUNDING_", v1::M2Rounding_Parse));
  spec.set_weights(format);
  spec.set_weights_asymmetric(asymmetric);
  spec.set_group_size(static_cast<int32_t>(group));
  spec.set_scale(scale);
  if (scale == v1::SCALE_CONSTRAINT_M2) spec.set_m2_rounding(rounding);
  return absl::OkStatus();
}

absl::Status ReadActivations(const JsonObject& json, v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const auto format,
                          ParseEnum<v1::ActivationFormat>(json, "format", "ACTIVATION_FORMAT_",
                                                          v1::ActivationFormat_Parse));
  NIBBLE_ASSIGN_OR_RETURN(const bool asymmetric, json.Bool("asymmetric"));
  spec.set_activations(format);
  spec.set_activations_symmetric(format == v1::ACTIVATION_FORMAT_INT8 && !asymmetric);
  return absl::OkStatus();
}

absl::Status ReadSolver(const JsonObject& json, v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const auto method,
                          ParseEnum<v1::Method>(json, "method", "METHOD_", v1::Method_Parse));
  NIBBLE_ASSIGN_OR_RETURN(const bool act_order, json.Bool("act_order"));
  NIBBLE_ASSIGN_OR_RETURN(const double damping, json.Number("damping", {}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t rank, json.Int("lorc_rank", {.min = 0, .max = 1 << 20}));
  NIBBLE_ASSIGN_OR_RETURN(
      const auto metric,
      ParseEnum<v1::LorcMetric>(json, "lorc_metric", "LORC_METRIC_", v1::LorcMetric_Parse));
  NIBBLE_ASSIGN_OR_RETURN(const auto compute,
                          ParseEnum<v1::Compute>(json, "compute", "COMPUTE_", v1::Compute_Parse));
  spec.set_method(method);
  spec.set_act_order(act_order);
  spec.set_damping(damping);
  spec.set_lorc_rank(static_cast<int32_t>(rank));
  spec.set_lorc_metric(metric);
  spec.set_compute(compute);
  return absl::OkStatus();
}

// Absent in artifacts of versions that had neither.
absl::Status ReadRefinements(const JsonObject& json, v1::JobSpec& spec) {
  spec.set_scale_search(v1::SCALE_SEARCH_NONE);
  spec.set_lorc_iterations(1);
  if (json.Has("scale_search")) {
    NIBBLE_ASSIGN_OR_RETURN(
        const auto search,
        ParseEnum<v1::ScaleSearch>(json, "scale_search", "SCALE_SEARCH_", v1::ScaleSearch_Parse));
    spec.set_scale_search(search);
  }
  if (json.Has("lorc_iterations")) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t iterations,
                            json.Int("lorc_iterations", {.min = 1, .max = INT32_MAX}));
    spec.set_lorc_iterations(static_cast<int32_t>(iterations));
  }
  return absl::OkStatus();
}

absl::Status ReadCalibration(const JsonObject& json, v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string corpus, json.String("corpus"));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t first, json.Int("first_text", {}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t last, json.Int("last_text", {}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t windows, json.Int("windows", {.min = 1, .max = INT32_MAX}));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t window, json.Int("window", {.min = 1, .max = INT32_MAX}));
  spec.mutable_corpus()->set_name(corpus);
  if (first > 0) spec.mutable_corpus()->set_first_text(first);
  if (last > 0) spec.mutable_corpus()->set_last_text(last);
  spec.set_windows(static_cast<int32_t>(windows));
  spec.set_window(static_cast<int32_t>(window));
  return absl::OkStatus();
}

// The spec that nibble.json tells of.
absl::StatusOr<v1::JobSpec> ReadSpec(const ModelFolder& folder) {
  const std::filesystem::path file = folder.path / "nibble.json";
  NIBBLE_ASSIGN_OR_RETURN(const Json parsed, ReadJsonFile(file));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject manifest, JsonObject::From(parsed, file.string()));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, manifest.Object("spec"));
  v1::JobSpec spec;
  NIBBLE_ASSIGN_OR_RETURN(const std::string model, manifest.String("model", ""));
  spec.set_model(model);
  spec.set_output(folder.name);
  spec.set_weights(v1::FORMAT_NONE);
  spec.set_activations(v1::ACTIVATION_FORMAT_NONE);
  if (json.Has("weights")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject weights, json.Object("weights"));
    NIBBLE_RETURN_IF_ERROR(ReadWeights(weights, spec));
  }
  if (json.Has("activations")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject activations, json.Object("activations"));
    NIBBLE_RETURN_IF_ERROR(ReadActivations(activations, spec));
  }
  NIBBLE_RETURN_IF_ERROR(ReadSolver(json, spec));
  NIBBLE_RETURN_IF_ERROR(ReadRefinements(json, spec));
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* excluded, json.Array("excluded"));
  for (const Json& name : *excluded) {
    if (name.is_string()) spec.add_exclude(name.get<std::string>());
  }
  if (manifest.Has("calibration")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject calibration, manifest.Object("calibration"));
    NIBBLE_RETURN_IF_ERROR(ReadCalibration(calibration, spec));
  }
  return spec;
}

absl::Status ReadReport(const ModelFolder& folder, v1::ModelVersion& version) {
  const std::filesystem::path file = folder.path / "report.json";
  NIBBLE_ASSIGN_OR_RETURN(const Json parsed, ReadJsonFile(file));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject report, JsonObject::From(parsed, file.string()));
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* layers, report.Array("layers"));
  for (const Json& value : *layers) {
    NIBBLE_ASSIGN_OR_RETURN(const LayerReport layer,
                            ParseLayerReport(value, StrCat(file.string(), ": layers")));
    *version.add_report() = LayerReportMessage(layer);
  }
  return absl::OkStatus();
}

void SetStatus(const ModelStatus& status, v1::ModelVersion& version) {
  version.set_state(static_cast<v1::ModelState>(status.state));
  if (!status.failure.ok()) {
    version.mutable_failure()->set_code(status.failure.raw_code());
    version.mutable_failure()->set_message(std::string(status.failure.message()));
  }
  if (status.loaded_at) *version.mutable_loaded_at() = TimeMessage(*status.loaded_at);
  if (status.compute) {
    version.mutable_load_options()->set_compute(
        *status.compute == Compute::kF32 ? v1::COMPUTE_F32 : v1::COMPUTE_BF16);
    version.mutable_load_options()->set_kv_cache_format(v1::KV_CACHE_FORMAT_COMPUTE);
  }
  version.set_memory_bytes(status.memory_bytes);
  version.set_kv_cache_bytes(status.kv_cache_bytes);
}

}  // namespace

absl::StatusOr<v1::Model> ModelMessage(const ModelFolder& folder, const ModelStatus& status,
                                       bool report) {
  v1::Model message;
  message.set_name(folder.name);
  v1::ModelVersion& version = *message.add_versions();
  version.set_version(1);
  SetStatus(status, version);
  version.set_kind(folder.artifact ? v1::MODEL_KIND_ARTIFACT : v1::MODEL_KIND_CHECKPOINT);
  version.set_architecture(folder.config.family == Family::kOpt ? "OPTForCausalLM"
                                                                : "LlamaForCausalLM");
  version.set_parameters(folder.parameters);
  version.set_linear_bits_per_weight(folder.linear_bits_per_weight);
  version.set_model_bits_per_weight(folder.model_bits_per_weight);
  version.set_bytes(folder.bytes);
  version.set_layers(static_cast<int32_t>(folder.config.layers));
  version.set_hidden_size(static_cast<int32_t>(folder.config.hidden));
  version.set_vocabulary_size(static_cast<int32_t>(folder.config.vocab));
  version.set_context_tokens(static_cast<int32_t>(folder.config.context));
  version.set_has_chat_template(folder.has_chat_template);
  *version.mutable_created_at() = TimeMessage(folder.created);
  if (!folder.artifact) return message;
  NIBBLE_ASSIGN_OR_RETURN(*version.mutable_spec(), ReadSpec(folder));
  if (report) NIBBLE_RETURN_IF_ERROR(ReadReport(folder, version));
  return message;
}

}  // namespace nibble
