// A nibbled of each test's own with a tiny model and a corpus, and the calls about its jobs.
#pragma once

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nibble/v1/quantization.grpc.pb.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/temp_folder.h"

namespace nibble {

inline constexpr int kWindow = 64;
inline constexpr int kFewWindows = 8;
inline constexpr int kLongLayers = 6;
inline constexpr int kManyWindows = 300;  // enough for every layer to take a while

class JobDaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyLlama({}, root() / "models" / "tiny").ok());
    std::filesystem::create_directories(root() / "corpora");
    std::ofstream corpus(root() / "corpora" / "text.txt");
    // One token a byte.
    for (int i = 0; i < kManyWindows * kWindow / 8; ++i) corpus << "word" << 1000 + i % 9000 << " ";
    corpus.close();
    Start();
  }

  std::filesystem::path root() const { return folder_.path(); }
  bool HasStaging() const {
    for (const auto& entry : std::filesystem::directory_iterator(root() / "artifacts")) {
      if (entry.path().filename().string().starts_with(".staging-")) return true;
    }
    return false;
  }

  void Start(const std::vector<std::string>& arguments = {}) {
    daemon_ = std::make_unique<DaemonProcess>(NIBBLED_PATH, root(), arguments);
    ASSERT_NE(daemon_->grpc_address(), "");
    stub_ = v1::QuantizationService::NewStub(
        grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  static v1::SubmitJobRequest Request(const std::string& output, int windows) {
    v1::SubmitJobRequest request;
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_model("tiny");
    spec.set_output(output);
    spec.set_weights(v1::FORMAT_E2M1);
    spec.set_activations(v1::ACTIVATION_FORMAT_E4M3);
    spec.set_group_size(32);
    spec.mutable_corpus()->set_name("text.txt");
    spec.set_windows(windows);
    spec.set_window(kWindow);
    return request;
  }

  // Seconds of work: something else can be done meanwhile.
  v1::SubmitJobRequest LongRequest(const std::string& output) const {
    const TinyLlama large = {.hidden = 256, .layers = kLongLayers, .intermediate = 512};
    const auto model = root() / "models" / "large";
    EXPECT_TRUE(std::filesystem::exists(model) || WriteTinyLlama(large, model).ok());
    v1::SubmitJobRequest request = Request(output, kManyWindows);
    request.mutable_spec()->set_model("large");
    return request;
  }

  grpc::Status Submit(const v1::SubmitJobRequest& request, v1::Job& job) {
    grpc::ClientContext context;
    return stub_->SubmitJob(&context, request, &job);
  }
  v1::Job MustSubmit(const v1::SubmitJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Submit(request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  v1::Job Get(const std::string& id) {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_job_id(id);
    request.set_include_layers(true);
    v1::Job job;
    EXPECT_TRUE(stub_->GetJob(&context, request, &job).ok());
    return job;
  }
  void Cancel(const std::string& id) {
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    EXPECT_TRUE(stub_->CancelJob(&context, request, &job).ok());
  }

  // Watches from `after` to the stream's end, calling `act` on each event; returns them.
  std::vector<v1::JobEvent> Watch(const std::string& id, int64_t after,
                                  const std::function<void(const v1::JobEvent&)>& act = nullptr) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(id);
    request.set_after_sequence(after);
    const auto reader = stub_->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    for (v1::JobEvent event; reader->Read(&event);) {
      EXPECT_EQ(event.sequence(), after + 1 + static_cast<int64_t>(events.size()));
      events.push_back(event);
      if (act != nullptr) act(event);
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return events;
  }

  // Watches until so many layers are finished; the sequence of the last event seen.
  int64_t UntilLayer(const std::string& id, int layers) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(id);
    const auto reader = stub_->WatchJob(&context, request);
    v1::JobEvent event;
    while (reader->Read(&event) && event.progress().layer() < layers) {
    }
    EXPECT_EQ(event.progress().layer(), layers);
    context.TryCancel();
    reader->Finish();
    return event.sequence();
  }

  // Watches a job for so long; true when it ended.
  bool EndsWithin(const std::string& id, double seconds) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds)));
    v1::WatchJobRequest request;
    request.set_job_id(id);
    const auto reader = stub_->WatchJob(&context, request);
    for (v1::JobEvent event; reader->Read(&event);) {
    }
    return reader->Finish().ok();
  }

  TempFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<v1::QuantizationService::Stub> stub_;
};

}  // namespace nibble
