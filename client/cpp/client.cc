#include "client/cpp/client.h"

#include <grpcpp/grpcpp.h>

#include <thread>
#include <utility>

#include "nibble/v1/evaluation.grpc.pb.h"
#include "nibble/v1/inference.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "nibble/v1/quantization.grpc.pb.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kReconnectPause{500};
constexpr int kKeepAliveMilliseconds = 20'000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // reports of large models
  // A stream on which nothing comes may be one of a server that is gone.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepAliveMilliseconds);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepAliveMilliseconds);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// gRPC's codes and Abseil's have the same numbers.
absl::Status ToAbslStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

template <class Response, class Stub, class Request>
absl::StatusOr<Response> Call(Stub& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request) {
  grpc::ClientContext context;
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return ToAbslStatus(status);
  return response;
}

// Reads a stream to its end; `open` starts the call.
template <class Message, class Open>
absl::Status ReadAll(const Open& open, const Client::OnMessage<Message>& on_message) {
  grpc::ClientContext context;
  auto reader = open(&context);
  Message message;
  while (reader->Read(&message)) {
    if (!on_message(message)) {
      context.TryCancel();
      break;
    }
  }
  return ToAbslStatus(reader->Finish());
}

}  // namespace

struct Client::Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : quantization(channel), model(channel), inference(channel), evaluation(channel) {}

  v1::QuantizationService::Stub quantization;
  v1::ModelService::Stub model;
  v1::InferenceService::Stub inference;
  v1::EvaluationService::Stub evaluation;
};

Client::Client(Options options)
    : options_(std::move(options)),
      stubs_(std::make_unique<Stubs>(MakeChannel(options_.address))) {}

Client::~Client() = default;

absl::StatusOr<v1::Job> Client::SubmitJob(const v1::SubmitJobRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::SubmitJob, request);
}

absl::StatusOr<v1::JobEstimate> Client::EstimateJob(const v1::EstimateJobRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::EstimateJob, request);
}

absl::StatusOr<v1::Job> Client::GetJob(const v1::GetJobRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::GetJob, request);
}

absl::StatusOr<v1::ListJobsResponse> Client::ListJobs(const v1::ListJobsRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::ListJobs, request);
}

absl::StatusOr<v1::Job> Client::CancelJob(const v1::CancelJobRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::CancelJob, request);
}

absl::Status Client::DeleteJob(const v1::DeleteJobRequest& request) {
  return Call(stubs_->quantization, &v1::QuantizationService::Stub::DeleteJob, request).status();
}

absl::Status Client::WatchJob(const v1::WatchJobRequest& request,
                              const OnMessage<v1::JobEvent>& on_event) {
  using Clock = std::chrono::steady_clock;
  v1::WatchJobRequest from = request;
  Clock::time_point give_up = Clock::now();
  while (true) {
    absl::Status status = ReadAll<v1::JobEvent>(
        [&](grpc::ClientContext* context) { return stubs_->quantization.WatchJob(context, from); },
        [&](const v1::JobEvent& event) {
          from.set_after_sequence(event.sequence());
          give_up = Clock::now() + options_.reconnect_for;
          return on_event(event);
        });
    if (!absl::IsUnavailable(status) || Clock::now() >= give_up) return status;
    std::this_thread::sleep_for(kReconnectPause);
  }
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels(const v1::ListModelsRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::ListModels, request);
}

absl::StatusOr<v1::Model> Client::GetModel(const v1::GetModelRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::GetModel, request);
}

absl::StatusOr<v1::Model> Client::LoadModel(const v1::LoadModelRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::LoadModel, request);
}

absl::StatusOr<v1::Model> Client::UnloadModel(const v1::UnloadModelRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::UnloadModel, request);
}

absl::Status Client::DeleteModel(const v1::DeleteModelRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::DeleteModel, request).status();
}

absl::StatusOr<v1::UploadResponse> Client::Upload(
    const std::function<absl::Status(const Send&)>& write) {
  grpc::ClientContext context;
  v1::UploadResponse response;
  const auto writer = stubs_->model.Upload(&context, &response);
  const absl::Status written =
      write([&](const v1::UploadRequest& message) { return writer->Write(message); });
  if (!written.ok()) context.TryCancel();
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!written.ok()) return written;
  if (!status.ok()) return ToAbslStatus(status);
  return response;
}

absl::Status Client::Download(const v1::DownloadRequest& request,
                              const OnMessage<v1::DownloadResponse>& on_response) {
  return ReadAll<v1::DownloadResponse>(
      [&](grpc::ClientContext* context) { return stubs_->model.Download(context, request); },
      on_response);
}

absl::StatusOr<v1::ListCorporaResponse> Client::ListCorpora(const v1::ListCorporaRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::ListCorpora, request);
}

absl::Status Client::DeleteCorpus(const v1::DeleteCorpusRequest& request) {
  return Call(stubs_->model, &v1::ModelService::Stub::DeleteCorpus, request).status();
}

absl::StatusOr<v1::ScoreResponse> Client::Score(const v1::ScoreRequest& request) {
  return Call(stubs_->inference, &v1::InferenceService::Stub::Score, request);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  return Call(stubs_->inference, &v1::InferenceService::Stub::Tokenize, request);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request) {
  return Call(stubs_->inference, &v1::InferenceService::Stub::Detokenize, request);
}

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              const OnMessage<v1::GenerateResponse>& on_response) {
  return ReadAll<v1::GenerateResponse>(
      [&](grpc::ClientContext* context) { return stubs_->inference.Generate(context, request); },
      on_response);
}

absl::Status Client::EvaluatePerplexity(
    const v1::EvaluatePerplexityRequest& request,
    const OnMessage<v1::EvaluatePerplexityResponse>& on_response) {
  return ReadAll<v1::EvaluatePerplexityResponse>(
      [&](grpc::ClientContext* context) {
        return stubs_->evaluation.EvaluatePerplexity(context, request);
      },
      on_response);
}

absl::Status Client::ProfileActivations(
    const v1::ProfileActivationsRequest& request,
    const OnMessage<v1::ProfileActivationsResponse>& on_response) {
  return ReadAll<v1::ProfileActivationsResponse>(
      [&](grpc::ClientContext* context) {
        return stubs_->evaluation.ProfileActivations(context, request);
      },
      on_response);
}

}  // namespace nibble
