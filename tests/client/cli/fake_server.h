// Services that record what they are asked and answer as told, on a free loopback port.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nibble/v1/evaluation.grpc.pb.h"
#include "nibble/v1/inference.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "nibble/v1/quantization.grpc.pb.h"

namespace nibble {

template <class Message>
struct Stream {
  std::vector<Message> messages;
  grpc::Status end;
};

struct FakeQuantization : v1::QuantizationService::Service {
  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest* request,
                         v1::Job* job) override;
  grpc::Status EstimateJob(grpc::ServerContext*, const v1::EstimateJobRequest* request,
                           v1::JobEstimate* response) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override;

  grpc::Status submit_status;
  v1::SubmitJobRequest submitted;
  v1::EstimateJobRequest estimated;
  v1::JobEstimate estimate;
  // One for each call of WatchJob, in order.
  std::deque<Stream<v1::JobEvent>> watches;
  std::vector<v1::WatchJobRequest> watched;
  // By page token.
  std::map<std::string, v1::ListJobsResponse> pages;
};

struct FakeInference : v1::InferenceService::Service {
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;

  v1::GenerateRequest asked;
  Stream<v1::GenerateResponse> answer;
};

struct FakeEvaluation : v1::EvaluationService::Service {
  grpc::Status EvaluatePerplexity(
      grpc::ServerContext*, const v1::EvaluatePerplexityRequest* request,
      grpc::ServerWriter<v1::EvaluatePerplexityResponse>* writer) override;
  grpc::Status ProfileActivations(
      grpc::ServerContext*, const v1::ProfileActivationsRequest* request,
      grpc::ServerWriter<v1::ProfileActivationsResponse>* writer) override;

  v1::EvaluatePerplexityRequest asked;
  Stream<v1::EvaluatePerplexityResponse> answer;
  v1::ProfileActivationsRequest profiled;
  Stream<v1::ProfileActivationsResponse> profile;
};

class FakeServer {
 public:
  FakeServer();
  std::string address() const;

  FakeQuantization quantization;
  FakeInference inference;
  FakeEvaluation evaluation;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nibble
