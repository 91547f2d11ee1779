// nibbled's runner process with a real model: the same answers as in one process, and what happens
// when it dies.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nibble/v1/inference.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "tests/children.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/streams.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr int kContext = 2048;

struct Answer {
  grpc::Status status;
  std::vector<int32_t> tokens;
};

class RunnerTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyLlama({.context = kContext}, models() / "tiny").ok());
    Start("process");
  }

  std::filesystem::path models() const { return folder_.path() / "models"; }
  void Start(const std::string& runner) {
    daemon_.reset();
    daemon_ = std::make_unique<DaemonProcess>(NIBBLED_PATH, folder_.path(),
                                              std::vector<std::string>{"--runner", runner});
    ASSERT_NE(daemon_->grpc_address(), "");
    const auto channel =
        grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials());
    inference_ = v1::InferenceService::NewStub(channel);
    models_ = v1::ModelService::NewStub(channel);
  }

  // Calls `act` once the first token has come.
  Answer Generate(
      const v1::GenerateRequest& request, const std::function<void()>& act = [] {}) {
    grpc::ClientContext context;
    const auto reader = inference_->Generate(&context, request);
    Answer answer;
    for (v1::GenerateResponse message; reader->Read(&message);) {
      if (answer.tokens.empty() && !message.token_ids().empty()) act();
      answer.tokens.insert(answer.tokens.end(), message.token_ids().begin(),
                           message.token_ids().end());
    }
    answer.status = reader->Finish();
    return answer;
  }
  // Returns once it has ended.
  void KillRunner() {
    const std::vector<pid_t> runners = daemon_->runners();
    ASSERT_EQ(runners.size(), 1u);
    kill(runners[0], SIGKILL);
    while (!HasEnded(runners[0])) std::this_thread::yield();
  }

  TempFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

TEST_F(RunnerTest, AnswersAreThoseOfARunnerInline) {
  v1::GenerateRequest greedy = TinyRequest("A runner by itself.", 100);
  v1::GenerateRequest drawn = TinyRequest("A draw of luck?", 100);
  drawn.mutable_sampling()->set_temperature(1);
  drawn.mutable_sampling()->set_repetition_penalty(1.1F);
  drawn.mutable_sampling()->set_seed(5);
  drawn.set_logprobs(3);
  std::vector<Answer> answers;
  for (const std::string runner : {"process", "inline"}) {
    Start(runner);
    for (const auto& request : {greedy, drawn}) answers.push_back(Generate(request));
    EXPECT_EQ(daemon_->runners().size(), runner == "process" ? 1u : 0u);
  }
  for (const Answer& answer : answers) EXPECT_EQ(answer.tokens.size(), 100u);
  EXPECT_EQ(answers[0].tokens, answers[2].tokens);
  EXPECT_EQ(answers[1].tokens, answers[3].tokens);
}

TEST_F(RunnerTest, AKilledOneEndsAtMostItsStreamAndTheDaemonServesOn) {
  v1::GenerateRequest request = TinyRequest("The cache of this prompt is lost on the way.", 400);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(3);
  const Answer whole = Generate(request);
  ASSERT_EQ(whole.tokens.size(), 400u);
  for (int i = 0; i < 3; ++i) {
    const Answer killed = Generate(request, [this] { KillRunner(); });
    // Killed between two steps it costs nothing but time.
    if (killed.status.ok()) {
      EXPECT_EQ(killed.tokens, whole.tokens);
    } else {
      EXPECT_EQ(killed.status.error_code(), grpc::StatusCode::UNAVAILABLE);
      EXPECT_EQ(killed.status.error_message(),
                "runner: its process was killed by signal 9 (Killed) in a step");
      const std::vector<int32_t> told(
          whole.tokens.begin(), whole.tokens.begin() + static_cast<int64_t>(killed.tokens.size()));
      EXPECT_EQ(killed.tokens, told);
    }
    EXPECT_EQ(Generate(request).tokens, whole.tokens);
  }
  KillRunner();
  EXPECT_EQ(Generate(request).tokens, whole.tokens);
  EXPECT_THAT(Scrape(daemon_->metrics_address()),
              HasSubstr("nibble_runner_restarts_total{model=\"tiny\"} 4\n"));
}

TEST_F(RunnerTest, TheLoadersStatusIsTheCallers) {
  std::filesystem::create_directories(models() / "broken");
  for (const char* name : {"config.json", "tokenizer.json"}) {
    std::filesystem::copy(models() / "tiny" / name, models() / "broken" / name);
  }
  std::ofstream(models() / "broken" / "model.safetensors") << "no tensors";
  v1::LoadModelRequest load;
  load.set_name("broken");
  std::vector<grpc::Status> told;
  for (const std::string runner : {"process", "inline"}) {
    Start(runner);
    grpc::ClientContext context;
    v1::Model model;
    told.push_back(models_->LoadModel(&context, load, &model));
    EXPECT_TRUE(daemon_->runners().empty());
  }
  EXPECT_FALSE(told[0].ok());
  EXPECT_EQ(told[0].error_code(), told[1].error_code());
  EXPECT_EQ(told[0].error_message(), told[1].error_message());
  EXPECT_EQ(Generate(TinyRequest("others", 5)).tokens.size(), 5u);
}

TEST_F(RunnerTest, EndsWithADaemonThatIsKilled) {
  EXPECT_EQ(Generate(TinyRequest("load", 1)).tokens.size(), 1u);
  const std::vector<pid_t> runners = daemon_->runners();
  ASSERT_EQ(runners.size(), 1u);
  daemon_->Stop(SIGKILL);
  while (!HasEnded(runners[0])) std::this_thread::yield();
}

TEST_F(RunnerTest, AnUnloadedModelsProcessIsGone) {
  EXPECT_EQ(Generate(TinyRequest("load", 1)).tokens.size(), 1u);
  ASSERT_EQ(daemon_->runners().size(), 1u);
  grpc::ClientContext context;
  v1::UnloadModelRequest unload;
  unload.set_name("tiny");
  v1::Model model;
  ASSERT_TRUE(models_->UnloadModel(&context, unload, &model).ok());
  EXPECT_TRUE(daemon_->runners().empty());
}

}  // namespace
}  // namespace nibble
