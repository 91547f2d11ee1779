// The built nibbled with a tiny model and small corpora, driven over gRPC as a client does.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nibble/v1/evaluation.grpc.pb.h"
#include "nibble/v1/inference.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/streams.h"
#include "tests/temp_folder.h"

namespace nibble {

struct Answer {
  grpc::Status status;
  std::vector<v1::GenerateResponse> messages;

  std::string text(int choice = 0) const {
    std::string all;
    for (const auto& message : messages) {
      if (message.index() == choice) all += message.text();
    }
    return all;
  }
  std::vector<int32_t> tokens(int choice = 0) const {
    std::vector<int32_t> all;
    for (const auto& message : messages) {
      if (message.index() != choice) continue;
      all.insert(all.end(), message.token_ids().begin(), message.token_ids().end());
    }
    return all;
  }
  v1::FinishReason finish(int choice = 0) const {
    v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
    for (const auto& message : messages) {
      if (message.index() == choice && message.finish_reason() != 0) {
        reason = message.finish_reason();
      }
    }
    return reason;
  }
};

class ServingTest : public testing::Test {
 protected:
  static constexpr int kContext = 2048;

  void SetUp() override {
    const std::filesystem::path root = folder_.path();
    ASSERT_TRUE(
        WriteTinyLlama({.hidden = 32, .layers = 2, .context = kContext}, root / "models" / "tiny")
            .ok());
    std::filesystem::create_directories(root / "corpora");
    std::ofstream corpus(root / "corpora" / "text.txt");
    for (int i = 0; i < 6000; ++i) corpus << static_cast<char>('a' + i * i % 26);
    std::ofstream lines(root / "corpora" / "texts.jsonl");
    for (int i = 0; i < 3; ++i) lines << R"({"text": ")" << std::string(100, 'x') << "\"}\n";
    corpus.close();
    lines.close();
    daemon_ = std::make_unique<DaemonProcess>(NIBBLED_PATH, root);
    ASSERT_NE(daemon_->grpc_address(), "");
    channel_ = grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials());
    inference_ = v1::InferenceService::NewStub(channel_);
    evaluation_ = v1::EvaluationService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = inference_->Generate(&context, request);
    Answer answer;
    answer.status = ReadAll(*reader, answer.messages);
    return answer;
  }
  void ExpectRefused(const v1::GenerateRequest& request, grpc::StatusCode code,
                     const std::string& words) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), code) << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), testing::HasSubstr(words));
  }
  // Scrapes until the page says so; the test's own time limit ends a wait in vain.
  void AwaitMetric(const std::string& line) {
    while (Scrape(daemon_->metrics_address()).find(line) == std::string::npos) {
      std::this_thread::yield();
    }
  }

  TempFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::EvaluationService::Stub> evaluation_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

}  // namespace nibble
