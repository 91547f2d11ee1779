#include "server/services/quantization_service.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/corpus.h"
#include "server/jobs/admission.h"
#include "server/jobs/job_spec.h"
#include "server/ops/grpc_status.h"
#include "server/registry/model_folder.h"
#include "server/services/job_messages.h"
#include "server/services/pages.h"
#include "server/services/watch_job.h"

namespace nibble {
namespace {

constexpr size_t kLongestRequestId = 128;
constexpr int kMostLabels = 64;
constexpr size_t kLongestLabelKey = 63;
constexpr size_t kLongestLabelValue = 256;
// A larger corpus is counted by the worker.
constexpr uintmax_t kCountedCorpusBytes = 16 << 20;

absl::Status Invalid(std::string_view field, std::string_view found, std::string_view expected) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, found, expected);
}

// Equal messages give equal bytes.
std::string Deterministic(const v1::JobSpec& spec) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  spec.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

absl::Status CheckLabels(const v1::SubmitJobRequest& request) {
  if (request.request_id().size() > kLongestRequestId) {
    return Invalid("request_id", StrCat(request.request_id().size(), " bytes"),
                   StrCat("at most ", kLongestRequestId));
  }
  if (request.spec().labels_size() > kMostLabels) {
    return Invalid("labels", StrCat(request.spec().labels_size(), " labels"),
                   StrCat("at most ", kMostLabels));
  }
  for (const auto& [key, value] : request.spec().labels()) {
    if (key.empty() || key.size() > kLongestLabelKey || value.size() > kLongestLabelValue) {
      return Invalid(
          "labels", StrCat("a key of ", key.size(), " and a value of ", value.size(), " bytes"),
          StrCat("keys of 1 to ", kLongestLabelKey, " and values of at most ", kLongestLabelValue));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOutputIsFree(const DataRoot& root, const std::string& output) {
  for (const auto& folder : {root.models(), root.artifacts()}) {
    std::error_code error;
    if (std::filesystem::exists(folder / output, error)) {
      return FieldError(absl::StatusCode::kAlreadyExists, "output", StrCat("\"", output, "\""),
                        "a name that no model has");
    }
  }
  return absl::OkStatus();
}

// Cuts a small corpus, so that too few windows are refused here and not in the queue.
absl::Status CheckWindows(const JobPlan& plan) {
  const CalibrationSpec& calibration = plan.spec.calibration;
  std::error_code error;
  if (calibration.corpus.empty() ||
      std::filesystem::file_size(calibration.corpus, error) > kCountedCorpusBytes) {
    return absl::OkStatus();
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const std::string text,
      ReadCorpus(calibration.corpus, calibration.first_text, calibration.last_text));
  NIBBLE_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(plan.checkpoint, "model"));
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(plan.checkpoint));
  return CutWindows(*tokenizer, config.vocab, text, calibration.window_tokens, calibration.windows)
      .status();
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, RpcTimer& timer,
                                 const absl::StatusOr<Job>& job, v1::Job& response) {
  if (job.ok()) response = JobMessage(*job);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(timer.Done(ToGrpcStatus(job.status())));
  return reactor;
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, RpcTimer& timer,
                                 const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(timer.Done(ToGrpcStatus(status)));
  return reactor;
}

}  // namespace

QuantizationService::QuantizationService(Options options, JobStore& store, absl::Mutex& names,
                                         JobNotifier& notifier, Metrics& metrics)
    : options_(std::move(options)),
      store_(store),
      names_(names),
      notifier_(notifier),
      metrics_(metrics) {}

absl::StatusOr<QuantizationService::CheckedJob> QuantizationService::Check(
    const v1::JobSpec& spec) const {
  CheckedJob job;
  NIBBLE_ASSIGN_OR_RETURN(job.spec, FillDefaults(spec, options_.root));
  NIBBLE_ASSIGN_OR_RETURN(const JobPlan plan, MakeJobPlan(job.spec, options_.root));
  NIBBLE_RETURN_IF_ERROR(CheckOutputIsFree(options_.root, job.spec.output()));
  NIBBLE_RETURN_IF_ERROR(CheckWindows(plan));
  NIBBLE_ASSIGN_OR_RETURN(const Resources resources, options_.resources());
  std::vector<Place> fitting;
  for (Place place : options_.places) {
    place.host_memory = resources.memory_bytes;
    place.device_memory = resources.device_bytes;
    NIBBLE_ASSIGN_OR_RETURN(const QuantizeEstimate estimate,
                            EstimateQuantize(plan.spec, plan.checkpoint, place));
    const absl::Status fits = CheckFits(estimate, resources);
    if (fitting.empty()) {
      job.estimate = estimate;
      job.fits = fits;
    }
    if (fits.ok()) fitting.push_back(place);
  }
  if (fitting.size() == 1 && options_.places.size() > 1) {
    job.device = fitting.front().device.is_cuda() ? "cuda" : "cpu";
  }
  return job;
}

absl::StatusOr<Job> QuantizationService::Submit(const v1::SubmitJobRequest& request) {
  NIBBLE_RETURN_IF_ERROR(CheckLabels(request));
  NewJob submitted;
  submitted.request_id = request.request_id();
  submitted.request = Deterministic(request.spec());
  NIBBLE_ASSIGN_OR_RETURN(std::optional<Job> known,
                          store_.FindRequest(submitted.request_id, submitted.request));
  if (known.has_value()) return *std::move(known);

  NIBBLE_ASSIGN_OR_RETURN(const CheckedJob job, Check(request.spec()));
  NIBBLE_RETURN_IF_ERROR(job.fits);
  const v1::JobSpec& spec = job.spec;
  submitted.spec = Deterministic(spec);
  submitted.model = spec.model();
  submitted.output = spec.output();
  submitted.labels = {spec.labels().begin(), spec.labels().end()};
  submitted.priority = spec.priority();
  submitted.device = job.device;
  NIBBLE_ASSIGN_OR_RETURN(JobStore::Submitted made, Store(submitted));
  options_.wake_worker();
  return std::move(made.job);
}

absl::StatusOr<JobStore::Submitted> QuantizationService::Store(const NewJob& submitted) {
  absl::MutexLock lock(&names_);
  NIBBLE_RETURN_IF_ERROR(FindModel(options_.root, "model", submitted.model).status());
  NIBBLE_RETURN_IF_ERROR(CheckOutputIsFree(options_.root, submitted.output));
  return store_.Submit(submitted);
}

grpc::ServerUnaryReactor* QuantizationService::SubmitJob(grpc::CallbackServerContext* context,
                                                         const v1::SubmitJobRequest* request,
                                                         v1::Job* response) {
  auto timer = std::make_shared<RpcTimer>(metrics_, "SubmitJob");
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  submissions_.Run([this, timer, reactor, request, response] {
    const absl::StatusOr<Job> job = Submit(*request);
    if (job.ok()) *response = JobMessage(*job);
    reactor->Finish(timer->Done(ToGrpcStatus(job.status())));
  });
  return reactor;
}

absl::Status QuantizationService::Get(const v1::GetJobRequest& request, v1::Job& response) {
  NIBBLE_ASSIGN_OR_RETURN(const Job job, store_.Get(request.job_id()));
  response = JobMessage(job);
  if (!request.include_layers()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> layers, store_.Layers(job));
  for (const std::string& layer : layers) response.add_layers()->ParseFromString(layer);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* QuantizationService::GetJob(grpc::CallbackServerContext* context,
                                                      const v1::GetJobRequest* request,
                                                      v1::Job* response) {
  RpcTimer timer(metrics_, "GetJob");
  return Answer(context, timer, Get(*request, *response));
}

absl::Status QuantizationService::List(const v1::ListJobsRequest& request,
                                       v1::ListJobsResponse& response) {
  NIBBLE_ASSIGN_OR_RETURN(const int size, PageSize(request.page().size()));
  JobFilter filter;
  for (int state : request.states()) {
    if (state < 1 || !v1::JobState_IsValid(state)) {
      return Invalid("states", StrCat(state), "states of a job");
    }
    filter.states.push_back(static_cast<JobState>(state));
  }
  filter.labels = {request.labels().begin(), request.labels().end()};
  filter.model = request.model();
  NIBBLE_ASSIGN_OR_RETURN(const JobPage page, store_.List(filter, size, request.page().token()));
  for (const Job& job : page.jobs) *response.add_jobs() = JobMessage(job);
  response.set_next_page_token(page.next_page_token);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* QuantizationService::ListJobs(grpc::CallbackServerContext* context,
                                                        const v1::ListJobsRequest* request,
                                                        v1::ListJobsResponse* response) {
  RpcTimer timer(metrics_, "ListJobs");
  return Answer(context, timer, List(*request, *response));
}

grpc::ServerWriteReactor<v1::JobEvent>* QuantizationService::WatchJob(
    grpc::CallbackServerContext*, const v1::WatchJobRequest* request) {
  return nibble::WatchJob(*request, store_, notifier_, metrics_);
}

absl::StatusOr<Job> QuantizationService::Cancel(const std::string& id) {
  absl::MutexLock lock(&names_);
  NIBBLE_ASSIGN_OR_RETURN(Job job, store_.Cancel(id));
  // One that waited to go on has layers staged; a worker removes its own. Another job may have the
  // name by now.
  NIBBLE_ASSIGN_OR_RETURN(const std::string live, store_.LiveJobOf(job.submitted.output));
  if (live.empty()) {
    NIBBLE_RETURN_IF_ERROR(RemoveStaging(options_.root.artifacts() / job.submitted.output));
  }
  return job;
}

grpc::ServerUnaryReactor* QuantizationService::CancelJob(grpc::CallbackServerContext* context,
                                                         const v1::CancelJobRequest* request,
                                                         v1::Job* response) {
  RpcTimer timer(metrics_, "CancelJob");
  const absl::StatusOr<Job> job = Cancel(request->job_id());
  if (job.ok()) {
    options_.wake_worker();
    notifier_.Notify(job->id);
  }
  return Answer(context, timer, job, *response);
}

grpc::ServerUnaryReactor* QuantizationService::DeleteJob(grpc::CallbackServerContext* context,
                                                         const v1::DeleteJobRequest* request,
                                                         v1::DeleteJobResponse*) {
  RpcTimer timer(metrics_, "DeleteJob");
  const absl::Status status = store_.Delete(request->job_id());
  if (status.ok()) notifier_.Notify(request->job_id());
  return Answer(context, timer, status);
}

absl::StatusOr<v1::JobEstimate> QuantizationService::Estimate(
    const v1::EstimateJobRequest& request) const {
  NIBBLE_ASSIGN_OR_RETURN(const CheckedJob job, Check(request.spec()));
  v1::JobEstimate message;
  message.set_fits(job.fits.ok());
  message.set_reason(std::string(job.fits.message()));
  message.set_device_memory_bytes(job.estimate.device_bytes);
  message.set_host_memory_bytes(job.estimate.host_bytes);
  message.set_disk_bytes(job.estimate.disk_bytes);
  message.set_seconds(job.estimate.seconds);
  message.set_artifact_bytes(job.estimate.artifact_bytes);
  message.set_linear_bits_per_weight(job.estimate.linear_bits_per_weight);
  return message;
}

grpc::ServerUnaryReactor* QuantizationService::EstimateJob(grpc::CallbackServerContext* context,
                                                           const v1::EstimateJobRequest* request,
                                                           v1::JobEstimate* response) {
  auto timer = std::make_shared<RpcTimer>(metrics_, "EstimateJob");
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  submissions_.Run([this, timer, reactor, request, response] {
    const absl::StatusOr<v1::JobEstimate> estimate = Estimate(*request);
    if (estimate.ok()) *response = *estimate;
    reactor->Finish(timer->Done(ToGrpcStatus(estimate.status())));
  });
  return reactor;
}

}  // namespace nibble
