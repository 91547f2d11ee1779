#include "server/services/profile_activations.h"

#include <atomic>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/profile.h"
#include "server/jobs/job_spec.h"
#include "server/ops/grpc_status.h"
#include "server/services/stream_writer.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

template <class Found>
absl::Status Refuse(std::string_view field, const Found& found, std::string_view expected) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, StrCat(found), expected);
}

absl::StatusOr<InputGroup> InputOf(int site) {
  switch (site) {
    case v1::ACTIVATION_SITE_QKV:
      return InputGroup::kAttentionIn;
    case v1::ACTIVATION_SITE_ATTENTION_OUTPUT:
      return InputGroup::kAttentionOut;
    case v1::ACTIVATION_SITE_MLP_INPUT:
      return InputGroup::kMlpIn;
    case v1::ACTIVATION_SITE_MLP_OUTPUT:
      return InputGroup::kMlpOut;
    default:
      return Refuse("sites", site, "a value of the API");
  }
}

v1::ActivationSite SiteOf(InputGroup input) {
  switch (input) {
    case InputGroup::kAttentionIn:
      return v1::ACTIVATION_SITE_QKV;
    case InputGroup::kAttentionOut:
      return v1::ACTIVATION_SITE_ATTENTION_OUTPUT;
    case InputGroup::kMlpIn:
      return v1::ACTIVATION_SITE_MLP_INPUT;
    case InputGroup::kMlpOut:
      return v1::ACTIVATION_SITE_MLP_OUTPUT;
  }
  return v1::ACTIVATION_SITE_UNSPECIFIED;
}

absl::StatusOr<ActivationSpec> FormatOf(const v1::PlacementFormat& format) {
  if (format.symmetric() && format.format() != v1::ACTIVATION_FORMAT_INT8) {
    return Refuse("placement_formats.symmetric", "true", "false, but for INT8");
  }
  switch (format.format()) {
    case v1::ACTIVATION_FORMAT_INT8:
      return ActivationSpec{Format::kInt8, !format.symmetric()};
    case v1::ACTIVATION_FORMAT_E4M3:
      return ActivationSpec{Format::kE4M3};
    case v1::ACTIVATION_FORMAT_E5M2:
      return ActivationSpec{Format::kE5M2};
    default:
      return Refuse("placement_formats.format", v1::ActivationFormat_Name(format.format()),
                    "E4M3, E5M2 or INT8");
  }
}

void Fill(const ActivationSpec& format, v1::PlacementFormat* message) {
  message->set_format(format.format == Format::kInt8   ? v1::ACTIVATION_FORMAT_INT8
                      : format.format == Format::kE4M3 ? v1::ACTIVATION_FORMAT_E4M3
                                                       : v1::ACTIVATION_FORMAT_E5M2);
  message->set_symmetric(format.format == Format::kInt8 && !format.asymmetric);
}

absl::Status FillPlacements(const v1::ProfileActivationsRequest& request, ProfileSpec& spec) {
  if (!request.has_placement_token()) {
    if (request.placement_formats().empty()) return absl::OkStatus();
    return Refuse("placement_formats", request.placement_formats_size(),
                  "none without placement_token");
  }
  spec.placement_token = request.placement_token();
  for (const v1::PlacementFormat& message : request.placement_formats()) {
    NIBBLE_ASSIGN_OR_RETURN(const ActivationSpec format, FormatOf(message));
    spec.placement_formats.push_back(format);
  }
  if (request.placement_formats().empty()) {
    spec.placement_formats = {{Format::kInt8, true}, {Format::kE4M3}, {Format::kE5M2}};
  }
  return absl::OkStatus();
}

absl::StatusOr<ProfileSpec> MakeSpec(const v1::ProfileActivationsRequest& request,
                                     const DataRoot& root) {
  NIBBLE_RETURN_IF_ERROR(CheckVersion(request.version()));
  NIBBLE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  if (!v1::Compute_IsValid(request.compute())) {
    return Refuse("compute", request.compute(), "a value of the API");
  }
  ProfileSpec spec;
  NIBBLE_ASSIGN_OR_RETURN(spec.corpus, FindCorpus(request.corpus(), root));
  spec.first_text = request.corpus().first_text();
  spec.last_text = request.corpus().last_text();
  if (request.has_windows()) spec.windows = request.windows();
  if (request.has_window()) spec.window_tokens = request.window();
  spec.compute = request.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
  spec.layers.assign(request.layers().begin(), request.layers().end());
  for (const int site : request.sites()) {
    NIBBLE_ASSIGN_OR_RETURN(const InputGroup input, InputOf(site));
    spec.inputs.push_back(input);
  }
  if (request.has_histogram_bins()) spec.histogram_bins = request.histogram_bins();
  if (!request.quantiles().empty()) {
    spec.probabilities.assign(request.quantiles().begin(), request.quantiles().end());
  }
  if (request.has_outlier_ratio()) spec.outlier_ratio = request.outlier_ratio();
  if (request.has_outlier_channels()) spec.outlier_channels = request.outlier_channels();
  NIBBLE_RETURN_IF_ERROR(FillPlacements(request, spec));
  return spec;
}

using Quantiles = google::protobuf::RepeatedPtrField<v1::Quantile>;

void Fill(const std::vector<double>& probabilities, const std::vector<double>& values,
          Quantiles* message) {
  for (size_t i = 0; i < probabilities.size(); ++i) {
    v1::Quantile* quantile = message->Add();
    quantile->set_probability(probabilities[i]);
    quantile->set_value(values[i]);
  }
}

void Fill(const ValuePlacement& placement, v1::Placement* message) {
  Fill(placement.format, message->mutable_format());
  message->set_scale(placement.scale.scale);
  message->set_zero_point(placement.scale.zero);
  message->mutable_values()->Assign(placement.values.begin(), placement.values.end());
  message->mutable_rounded()->Assign(placement.rounded.begin(), placement.rounded.end());
  message->set_mean_squared_error(placement.mean_squared_error);
  message->set_relative_error(placement.relative_error);
}

void Fill(const ActivationProfile& profile, const std::vector<double>& probabilities,
          v1::ActivationProfile* message) {
  message->set_layer(static_cast<int32_t>(profile.layer));
  message->set_site(SiteOf(profile.input));
  message->mutable_linears()->Assign(profile.linears.begin(), profile.linears.end());
  message->set_tokens(profile.tokens);
  message->set_channels(static_cast<int32_t>(profile.channels));
  message->set_min(profile.min);
  message->set_max(profile.max);
  message->set_mean(profile.moments.mean);
  message->set_standard_deviation(profile.moments.StandardDeviation());
  message->set_kurtosis(profile.moments.Kurtosis());
  Fill(probabilities, profile.quantiles, message->mutable_quantiles());
  message->mutable_histogram()->set_min(profile.min);
  message->mutable_histogram()->set_max(profile.max);
  message->mutable_histogram()->mutable_counts()->Assign(profile.histogram.begin(),
                                                         profile.histogram.end());
  Fill(probabilities, profile.token_range_quantiles, message->mutable_token_range_quantiles());
  for (const OutlierChannel& outlier : profile.outliers) {
    v1::OutlierChannel* channel = message->add_outlier_channels();
    channel->set_channel(static_cast<int32_t>(outlier.channel));
    channel->set_max_magnitude(outlier.max_magnitude);
    channel->set_ratio(outlier.ratio);
  }
  for (const ValuePlacement& placement : profile.placements)
    Fill(placement, message->add_placements());
}

class Profiling : public StreamWriter<v1::ProfileActivationsResponse> {
 public:
  Profiling(const v1::ProfileActivationsRequest& request, const DataRoot& root, Metrics& metrics)
      : request_(request), root_(root), timer_(metrics, "ProfileActivations") {}

  void Run() { End(timer_.Done(ToGrpcStatus(Profile()))); }

 protected:
  void OnAbort() override { aborted_ = true; }

 private:
  absl::Status Profile() {
    NIBBLE_RETURN_IF_ERROR(Aborted());
    NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path model,
                            FindModel(root_, "model", request_.model()));
    NIBBLE_ASSIGN_OR_RETURN(const ProfileSpec spec, MakeSpec(request_, root_));
    NIBBLE_RETURN_IF_ERROR(nibble::ProfileActivations(
        spec, model, [&](const ProfileProgress& progress) { return Take(spec, progress); }));
    last_.set_done(true);
    Push(Message());
    return absl::OkStatus();
  }

  absl::Status Aborted() const {
    return aborted_ ? absl::CancelledError("cancelled by the client") : absl::OkStatus();
  }

  // A message for each finished profile, and whenever a count has changed.
  absl::Status Take(const ProfileSpec& spec, const ProfileProgress& progress) {
    const bool news = progress.layers_done != last_.layers_done() ||
                      progress.layers != last_.layers_total() || progress.finished != nullptr;
    last_.set_layers_done(static_cast<int32_t>(progress.layers_done));
    last_.set_layers_total(static_cast<int32_t>(progress.layers));
    if (news) {
      v1::ProfileActivationsResponse message = Message();
      if (progress.finished != nullptr) {
        Fill(*progress.finished, spec.probabilities, message.mutable_profile());
      }
      Push(std::move(message));
    }
    return Aborted();
  }

  v1::ProfileActivationsResponse Message() {
    last_.set_seconds(absl::ToDoubleSeconds(absl::Now() - began_));
    last_.set_version(1);
    return last_;
  }

  const v1::ProfileActivationsRequest request_;
  const DataRoot& root_;
  RpcTimer timer_;
  const absl::Time began_ = absl::Now();
  std::atomic<bool> aborted_ = false;
  v1::ProfileActivationsResponse last_;  // without its profile
};

}  // namespace

grpc::ServerWriteReactor<v1::ProfileActivationsResponse>* ProfileActivations(
    const v1::ProfileActivationsRequest& request, const DataRoot& root, TaskThread& tasks,
    Metrics& metrics) {
  auto* profiling = new Profiling(request, root, metrics);
  tasks.Run([profiling] { profiling->Run(); });
  return profiling;
}

}  // namespace nibble
