#include "server/jobs/job_spec.h"

#include <algorithm>
#include <optional>
#include <system_error>

#include "nibble/v1/quantization.pb.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/config.h"

namespace nibble {
namespace {

constexpr int kLargestLorcRank = 128;

absl::Status Invalid(std::string_view field, std::string_view found, std::string_view expected) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, found, expected);
}

absl::StatusOr<std::optional<Format>> WeightFormat(v1::Format format) {
  switch (format) {
    case v1::FORMAT_NONE:
      return std::nullopt;
    case v1::FORMAT_E2M1:
      return Format::kE2M1;
    case v1::FORMAT_E3M0:
      return Format::kE3M0;
    case v1::FORMAT_E4M3:
      return Format::kE4M3;
    case v1::FORMAT_E5M2:
      return Format::kE5M2;
    case v1::FORMAT_INT4:
      return Format::kInt4;
    case v1::FORMAT_INT8:
      return Format::kInt8;
    default:
      return Invalid("weights", StrCat(static_cast<int>(format)), "a format, or FORMAT_NONE");
  }
}

absl::StatusOr<std::optional<Format>> ActivationFormat(v1::ActivationFormat format) {
  switch (format) {
    case v1::ACTIVATION_FORMAT_NONE:
      return std::nullopt;
    case v1::ACTIVATION_FORMAT_E4M3:
      return Format::kE4M3;
    case v1::ACTIVATION_FORMAT_E5M2:
      return Format::kE5M2;
    case v1::ACTIVATION_FORMAT_INT8:
      return Format::kInt8;
    default:
      return Invalid("activations", StrCat(static_cast<int>(format)),
                     "a format, or ACTIVATION_FORMAT_NONE");
  }
}

absl::Status CheckEnums(const v1::JobSpec& spec) {
  const auto check = [](std::string_view field, int value, bool known) {
    return known ? absl::OkStatus() : Invalid(field, StrCat(value), "a value of the API");
  };
  NIBBLE_RETURN_IF_ERROR(check("scale", spec.scale(), v1::ScaleConstraint_IsValid(spec.scale())));
  NIBBLE_RETURN_IF_ERROR(
      check("m2_rounding", spec.m2_rounding(), v1::M2Rounding_IsValid(spec.m2_rounding())));
  NIBBLE_RETURN_IF_ERROR(
      check("scale_search", spec.scale_search(), v1::ScaleSearch_IsValid(spec.scale_search())));
  NIBBLE_RETURN_IF_ERROR(check("method", spec.method(), v1::Method_IsValid(spec.method())));
  NIBBLE_RETURN_IF_ERROR(
      check("lorc_metric", spec.lorc_metric(), v1::LorcMetric_IsValid(spec.lorc_metric())));
  return check("compute", spec.compute(), v1::Compute_IsValid(spec.compute()));
}

// A seed of nothing, and versions that no model has.
absl::Status CheckSeedAndVersion(const v1::JobSpec& spec) {
  if (spec.has_rotate_seed() && !spec.rotate()) {
    return Invalid("rotate_seed", StrCat(spec.rotate_seed()), "no seed without rotate");
  }
  if (spec.model_version() < 0 || spec.model_version() > 1) {
    return FieldError(absl::StatusCode::kNotFound, "model_version", StrCat(spec.model_version()),
                      "0 or 1: a model of the data root has one version");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<WeightSpec>> MakeWeights(const v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<Format> format, WeightFormat(spec.weights()));
  NIBBLE_RETURN_IF_ERROR(CheckGroupSize(spec.group_size()));
  if (spec.weights_asymmetric() && !(format.has_value() && IsInteger(*format))) {
    return Invalid("weights_asymmetric", StrCat("true with ", v1::Format_Name(spec.weights())),
                   "true only with FORMAT_INT4 or FORMAT_INT8");
  }
  if (spec.m2_rounding() != v1::M2_ROUNDING_UNSPECIFIED &&
      spec.scale() != v1::SCALE_CONSTRAINT_M2) {
    return Invalid("m2_rounding", v1::M2Rounding_Name(spec.m2_rounding()),
                   "none unless scale is SCALE_CONSTRAINT_M2");
  }
  if (!format.has_value()) return std::nullopt;
  WeightSpec weights;
  weights.format = *format;
  weights.asymmetric = spec.weights_asymmetric();
  weights.group_size = spec.group_size();
  weights.constraint = spec.scale() == v1::SCALE_CONSTRAINT_NONE ? ScaleConstraint::kNone
                       : spec.scale() == v1::SCALE_CONSTRAINT_M1 ? ScaleConstraint::kM1
                                                                 : ScaleConstraint::kM2;
  weights.rounding = spec.m2_rounding() == v1::M2_ROUNDING_CEIL    ? M2Rounding::kCeil
                     : spec.m2_rounding() == v1::M2_ROUNDING_FLOOR ? M2Rounding::kFloor
                                                                   : M2Rounding::kMse;
  return weights;
}

absl::StatusOr<std::optional<ActivationSpec>> MakeActivations(const v1::JobSpec& spec) {
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<Format> format, ActivationFormat(spec.activations()));
  if (spec.activations_symmetric() && format != Format::kInt8) {
    return Invalid("activations_symmetric",
                   StrCat("true with ", v1::ActivationFormat_Name(spec.activations())),
                   "true only with ACTIVATION_FORMAT_INT8");
  }
  if (!format.has_value()) return std::nullopt;
  return ActivationSpec{.format = *format,
                        .asymmetric = *format == Format::kInt8 && !spec.activations_symmetric()};
}

absl::Status CheckRange(const v1::CorpusRef& corpus) {
  const bool ranged = corpus.has_first_text() || corpus.has_last_text();
  if (ranged && !corpus.name().ends_with(".jsonl")) {
    return Invalid("corpus.first_text", StrCat("a range of ", corpus.name()),
                   "a range only of a .jsonl");
  }
  if (corpus.has_first_text() && corpus.first_text() < 1) {
    return Invalid("corpus.first_text", StrCat(corpus.first_text()), "1 or more");
  }
  const int64_t first = corpus.has_first_text() ? corpus.first_text() : 1;
  if (corpus.has_last_text() && corpus.last_text() < first) {
    return Invalid("corpus.last_text", StrCat(corpus.last_text()), StrCat("at least ", first));
  }
  return absl::OkStatus();
}

absl::StatusOr<CalibrationSpec> MakeCalibration(const v1::JobSpec& spec, const DataRoot& root) {
  CalibrationSpec calibration;
  calibration.windows = spec.windows();
  calibration.window_tokens = spec.window();
  if (calibration.windows < 1) return Invalid("windows", StrCat(spec.windows()), "1 or more");
  if (!spec.has_corpus()) return calibration;
  NIBBLE_ASSIGN_OR_RETURN(calibration.corpus, FindCorpus(spec.corpus(), root));
  calibration.first_text = spec.corpus().first_text();
  calibration.last_text = spec.corpus().last_text();
  return calibration;
}

absl::Status CheckSolver(const v1::JobSpec& spec) {
  if (!(spec.damping() > 0 && spec.damping() <= 1)) {
    return Invalid("damping", StrCat(spec.damping()), "over 0, at most 1");
  }
  if (spec.lorc_rank() < 0 || spec.lorc_rank() > kLargestLorcRank) {
    return Invalid("lorc_rank", StrCat(spec.lorc_rank()), StrCat("0 to ", kLargestLorcRank));
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizeSpec> MakeQuantizeSpec(const v1::JobSpec& spec, const DataRoot& root) {
  QuantizeSpec made;
  NIBBLE_RETURN_IF_ERROR(CheckSolver(spec));
  NIBBLE_ASSIGN_OR_RETURN(made.weights, MakeWeights(spec));
  NIBBLE_ASSIGN_OR_RETURN(made.activations, MakeActivations(spec));
  NIBBLE_ASSIGN_OR_RETURN(made.calibration, MakeCalibration(spec, root));
  made.method = spec.method() == v1::METHOD_RTN ? Method::kRtn : Method::kGptq;
  made.gptq.act_order = spec.act_order();
  made.gptq.damping = spec.damping();
  made.lorc_rank = spec.lorc_rank();
  made.lorc_metric =
      spec.lorc_metric() == v1::LORC_METRIC_INPUT ? LorcMetric::kInput : LorcMetric::kWeight;
  if (spec.has_lorc_iterations()) made.lorc_iterations = spec.lorc_iterations();
  made.scale_search = spec.scale_search() == v1::SCALE_SEARCH_DIAGONAL ? ScaleSearch::kDiagonal
                                                                       : ScaleSearch::kNone;
  if (spec.rotate()) made.rotate_seed = spec.rotate_seed();
  made.exclude.assign(spec.exclude().begin(), spec.exclude().end());
  made.compute = spec.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
  return made;
}

}  // namespace

absl::StatusOr<std::filesystem::path> FindCorpus(const v1::CorpusRef& corpus,
                                                 const DataRoot& root) {
  NIBBLE_ASSIGN_OR_RETURN(std::filesystem::path file,
                          FindCorpus(root, "corpus.name", corpus.name()));
  NIBBLE_RETURN_IF_ERROR(CheckRange(corpus));
  return file;
}

absl::StatusOr<v1::JobSpec> FillDefaults(const v1::JobSpec& spec, const DataRoot& root) {
  NIBBLE_RETURN_IF_ERROR(CheckName("output", spec.output()));
  NIBBLE_RETURN_IF_ERROR(CheckEnums(spec));
  NIBBLE_RETURN_IF_ERROR(CheckSeedAndVersion(spec));
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path checkpoint,
                          FindModel(root, "model", spec.model()));
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(checkpoint));
  v1::JobSpec full = spec;
  if (!full.has_group_size()) full.set_group_size(256);
  if (full.scale() == v1::SCALE_CONSTRAINT_UNSPECIFIED) {
    full.set_scale(full.weights_asymmetric() ? v1::SCALE_CONSTRAINT_NONE : v1::SCALE_CONSTRAINT_M2);
  }
  if (full.m2_rounding() == v1::M2_ROUNDING_UNSPECIFIED &&
      full.scale() == v1::SCALE_CONSTRAINT_M2) {
    full.set_m2_rounding(v1::M2_ROUNDING_MSE);
  }
  if (full.method() == v1::METHOD_UNSPECIFIED) full.set_method(v1::METHOD_GPTQ);
  if (!full.has_act_order()) full.set_act_order(true);
  if (!full.has_damping()) full.set_damping(0.01);
  if (full.lorc_metric() == v1::LORC_METRIC_UNSPECIFIED) {
    full.set_lorc_metric(v1::LORC_METRIC_WEIGHT);
  }
  if (!full.has_lorc_iterations()) full.set_lorc_iterations(1);
  if (full.scale_search() == v1::SCALE_SEARCH_UNSPECIFIED) {
    full.set_scale_search(v1::SCALE_SEARCH_NONE);
  }
  if (full.rotate() && !full.has_rotate_seed()) full.set_rotate_seed(0);
  if (full.compute() == v1::COMPUTE_UNSPECIFIED) full.set_compute(v1::COMPUTE_BF16);
  if (!full.has_windows()) full.set_windows(128);
  if (!full.has_window()) full.set_window(std::min<int64_t>(2048, config.context));
  return full;
}

absl::StatusOr<JobPlan> MakeJobPlan(const v1::JobSpec& spec, const DataRoot& root) {
  JobPlan plan;
  NIBBLE_RETURN_IF_ERROR(CheckSeedAndVersion(spec));
  NIBBLE_RETURN_IF_ERROR(CheckName("output", spec.output()));
  plan.artifact = root.artifacts() / spec.output();
  NIBBLE_ASSIGN_OR_RETURN(plan.checkpoint, FindModel(root, "model", spec.model()));
  if (std::filesystem::exists(plan.checkpoint / "nibble.json")) {
    return Invalid("model", StrCat("\"", spec.model(), "\", an artifact"), "a checkpoint");
  }
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(plan.checkpoint));
  if (spec.window() < 2 || spec.window() > config.context) {
    return Invalid("window", StrCat(spec.window()),
                   StrCat("2 to the model's context of ", config.context));
  }
  NIBBLE_ASSIGN_OR_RETURN(plan.spec, MakeQuantizeSpec(spec, root));
  NIBBLE_RETURN_IF_ERROR(CheckQuantizeSpec(plan.spec, plan.checkpoint));
  return plan;
}

int PhaseNumber(Phase phase) {
  switch (phase) {
    case Phase::kLoading:
      return v1::JOB_PHASE_LOADING;
    case Phase::kCalibrating:
      return v1::JOB_PHASE_CALIBRATING;
    case Phase::kQuantizing:
      return v1::JOB_PHASE_QUANTIZING;
    case Phase::kWriting:
      return v1::JOB_PHASE_WRITING;
  }
  return v1::JOB_PHASE_UNSPECIFIED;
}

v1::LayerReport LayerReportMessage(const LayerReport& report) {
  v1::LayerReport message;
  message.set_layer(static_cast<int32_t>(report.layer));
  message.set_seconds(report.seconds);
  message.set_peak_host_bytes(report.peak_host_bytes);
  message.set_peak_device_bytes(report.peak_device_bytes);
  for (const LinearReport& linear : report.linears) {
    v1::LinearReport& entry = *message.add_linears();
    entry.set_name(linear.name);
    if (linear.output_error) entry.set_output_error(*linear.output_error);
    entry.set_weight_error(linear.weight_error);
    entry.set_clamped_groups(linear.clamped_groups);
    entry.set_damping(linear.damping);
    entry.set_damping_escalations(linear.damping_escalations);
    entry.set_seconds(linear.seconds);
  }
  return message;
}

std::string SerializeSummary(const QuantizeSummary& summary, const JobPlan& plan,
                             const PeakBytes& peak) {
  v1::JobSummary message;
  message.set_linear_bits_per_weight(summary.linear_bits_per_weight);
  message.set_model_bits_per_weight(summary.model_bits_per_weight);
  message.set_artifact_bytes(summary.artifact_bytes);
  int64_t source_bytes = 0;
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(plan.checkpoint, error)) {
    if (file.is_regular_file(error)) source_bytes += static_cast<int64_t>(file.file_size(error));
  }
  message.set_source_bytes(source_bytes);
  if (!plan.spec.calibration.corpus.empty()) {
    message.set_relative_error(summary.mean_output_error);
  }
  message.set_seconds(summary.seconds);
  message.set_peak_host_bytes(peak.host);
  message.set_peak_device_bytes(peak.device);
  message.set_model_version(1);
  return message.SerializeAsString();
}

}  // namespace nibble
