// A typed client of nibble's services. Thread-safe; calls block.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nibble/v1/evaluation.pb.h"
#include "nibble/v1/inference.pb.h"
#include "nibble/v1/model.pb.h"
#include "nibble/v1/quantization.pb.h"

namespace nibble {

class Client {
 public:
  struct Options {
    // host:port of a nibbled.
    std::string address = "127.0.0.1:8500";
    // How long WatchJob tries to reach the server again after its last event; 0: not at all.
    std::chrono::seconds reconnect_for{60};
  };

  // Called with each message of a stream; false cancels the call, which then ends with CANCELLED.
  template <class Message>
  using OnMessage = std::function<bool(const Message&)>;

  // Connects at the first call; a server that is not there is UNAVAILABLE then.
  explicit Client(Options options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Every error is the server's status, code and message unchanged.
  absl::StatusOr<v1::Job> SubmitJob(const v1::SubmitJobRequest& request);
  absl::StatusOr<v1::JobEstimate> EstimateJob(const v1::EstimateJobRequest& request);
  absl::StatusOr<v1::Job> GetJob(const v1::GetJobRequest& request);
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request);
  absl::StatusOr<v1::Job> CancelJob(const v1::CancelJobRequest& request);
  absl::Status DeleteJob(const v1::DeleteJobRequest& request);
  // Every event after `after_sequence`, each once and in order, up to the job's final state; a
  // connection that breaks after the first event is taken up again after the last one seen.
  absl::Status WatchJob(const v1::WatchJobRequest& request,
                        const OnMessage<v1::JobEvent>& on_event);

  absl::StatusOr<v1::ListModelsResponse> ListModels(const v1::ListModelsRequest& request);
  absl::StatusOr<v1::Model> GetModel(const v1::GetModelRequest& request);
  absl::StatusOr<v1::Model> LoadModel(const v1::LoadModelRequest& request);
  absl::StatusOr<v1::Model> UnloadModel(const v1::UnloadModelRequest& request);
  absl::Status DeleteModel(const v1::DeleteModelRequest& request);

  // A stream of upload messages: `write` sends them, until it is done or a send says false, which
  // means that the server has ended the call. An error of `write` cancels the call.
  using Send = std::function<bool(const v1::UploadRequest&)>;
  absl::StatusOr<v1::UploadResponse> Upload(const std::function<absl::Status(const Send&)>& write);
  absl::Status Download(const v1::DownloadRequest& request,
                        const OnMessage<v1::DownloadResponse>& on_response);
  absl::StatusOr<v1::ListCorporaResponse> ListCorpora(const v1::ListCorporaRequest& request);
  absl::Status DeleteCorpus(const v1::DeleteCorpusRequest& request);

  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request);
  absl::Status Generate(const v1::GenerateRequest& request,
                        const OnMessage<v1::GenerateResponse>& on_response);
  absl::Status EvaluatePerplexity(const v1::EvaluatePerplexityRequest& request,
                                  const OnMessage<v1::EvaluatePerplexityResponse>& on_response);
  absl::Status ProfileActivations(const v1::ProfileActivationsRequest& request,
                                  const OnMessage<v1::ProfileActivationsResponse>& on_response);

 private:
  struct Stubs;
  const Options options_;
  const std::unique_ptr<Stubs> stubs_;
};

}  // namespace nibble
