#include "tests/client/cli/fake_server.h"

namespace nibble {
namespace {

template <class Message>
grpc::Status Play(const Stream<Message>& stream, grpc::ServerWriter<Message>* writer) {
  for (const Message& message : stream.messages) writer->Write(message);
  return stream.end;
}

}  // namespace

grpc::Status FakeQuantization::SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest* request,
                                         v1::Job* job) {
  submitted = *request;
  job->set_id("job-1");
  job->set_state(v1::JOB_STATE_QUEUED);
  *job->mutable_spec() = request->spec();
  return submit_status;
}

grpc::Status FakeQuantization::EstimateJob(grpc::ServerContext*,
                                           const v1::EstimateJobRequest* request,
                                           v1::JobEstimate* response) {
  estimated = *request;
  *response = estimate;
  return grpc::Status::OK;
}

grpc::Status FakeQuantization::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                                        v1::ListJobsResponse* response) {
  *response = pages[request->page().token()];
  return grpc::Status::OK;
}

grpc::Status FakeQuantization::WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                                        grpc::ServerWriter<v1::JobEvent>* writer) {
  watched.push_back(*request);
  if (watches.empty()) return {grpc::StatusCode::NOT_FOUND, "job_id: no more watches"};
  const Stream<v1::JobEvent> stream = watches.front();
  watches.pop_front();
  return Play(stream, writer);
}

grpc::Status FakeInference::Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                                     grpc::ServerWriter<v1::GenerateResponse>* writer) {
  asked = *request;
  return Play(answer, writer);
}

grpc::Status FakeEvaluation::EvaluatePerplexity(
    grpc::ServerContext*, const v1::EvaluatePerplexityRequest* request,
    grpc::ServerWriter<v1::EvaluatePerplexityResponse>* writer) {
  asked = *request;
  return Play(answer, writer);
}

grpc::Status FakeEvaluation::ProfileActivations(
    grpc::ServerContext*, const v1::ProfileActivationsRequest* request,
    grpc::ServerWriter<v1::ProfileActivationsResponse>* writer) {
  profiled = *request;
  return Play(profile, writer);
}

FakeServer::FakeServer() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&quantization);
  builder.RegisterService(&inference);
  builder.RegisterService(&evaluation);
  server_ = builder.BuildAndStart();
}

std::string FakeServer::address() const { return "127.0.0.1:" + std::to_string(port_); }

}  // namespace nibble
