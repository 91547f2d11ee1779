#include "server/runner/remote_runner.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "server/engine/engine.h"
#include "tests/children.h"
#include "tests/server/engine/fake_runner.h"
#include "tests/server/runner/fake_runner_tokens.h"

namespace nibble {
namespace {

using ::testing::StartsWith;

constexpr int32_t kBlocks = 24;
constexpr char kBlocksArgument[] = "24";
constexpr KvPool kPool = {.blocks = kBlocks, .block_size = kFakeBlockSize, .bytes = kBlocks * 100};

// One sequence's step, in blocks 0, 1, ...
StepInputs Inputs(std::vector<int32_t> tokens, int64_t position = 0) {
  SequenceInput input{.sequence = 7, .tokens = std::move(tokens), .position = position};
  const int64_t end = position + static_cast<int64_t>(input.tokens.size());
  for (int32_t block = 0; block * kFakeBlockSize < end; ++block) input.blocks.push_back(block);
  input.sample = true;
  return {{input}};
}

class RemoteRunnerTest : public testing::Test {
 protected:
  RemoteRunnerTest() {
    options_.command = [this](int64_t kv_bytes) {
      kv_bytes_.push_back(kv_bytes);
      return std::vector<std::string>{FAKE_RUNNER_PATH, blocks_, load_, "-1"};
    };
    options_.patience = absl::InfiniteDuration();
    options_.on_restart = [this] { ++restarts_; };
  }

  void Start() {
    absl::StatusOr<std::unique_ptr<ModelRunner>> runner = MakeRemoteRunner(options_);
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }
  absl::Status Fail(int32_t token) {
    const absl::StatusOr<StepOutputs> outputs = runner_->Step(Inputs({token}));
    EXPECT_FALSE(outputs.ok());
    return outputs.status();
  }
  void ExpectItWorks() {
    const absl::StatusOr<StepOutputs> outputs = runner_->Step(Inputs({1, 2, 3}));
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    ASSERT_EQ(outputs->sequences.size(), 1u);
    EXPECT_EQ(outputs->sequences[0].sequence, 7u);
    EXPECT_EQ(outputs->sequences[0].token, FakeRunner::Next({1, 2, 3}));
  }

  RemoteRunnerOptions options_;
  std::string blocks_ = kBlocksArgument;
  std::string load_ = "works";
  std::vector<int64_t> kv_bytes_;  // the commands' arguments
  int restarts_ = 0;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_F(RemoteRunnerTest, AnswersAsTheRunnerInItsProcess) {
  Start();
  EXPECT_EQ(runner_->kv_pool().blocks, kBlocks);
  EXPECT_EQ(runner_->kv_pool().block_size, kFakeBlockSize);
  EXPECT_EQ(runner_->kv_pool().bytes, kPool.bytes);
  EXPECT_EQ(runner_->context(), 128);
  EXPECT_EQ(runner_->vocab_size(), FakeRunner::kVocab);
  ExpectItWorks();
  // Its cache is kept between steps.
  EXPECT_EQ(runner_->Step(Inputs({4, 5}, 3))->sequences[0].token,
            FakeRunner::Next({1, 2, 3, 4, 5}));
  EXPECT_EQ(restarts_, 0);
}

TEST_F(RemoteRunnerTest, ADeathInAStepIsToldAndTheNextStepStartsAnew) {
  Start();
  const int64_t epoch = runner_->kv_epoch();
  EXPECT_EQ(Fail(kKillToken), absl::UnavailableError(
                                  "runner: its process was killed by signal 9 (Killed) in a step"));
  const int64_t second = runner_->kv_epoch();
  EXPECT_NE(second, epoch);
  ExpectItWorks();
  EXPECT_EQ(Fail(kExitToken),
            absl::UnavailableError("runner: its process exited with status 3 in a step"));
  EXPECT_NE(runner_->kv_epoch(), second);
  ExpectItWorks();
  EXPECT_EQ(restarts_, 2);
  EXPECT_THAT(kv_bytes_, testing::ElementsAre(0, kPool.bytes, kPool.bytes));
}

TEST_F(RemoteRunnerTest, ADeathBetweenStepsIsSeenBeforeTheNext) {
  Start();
  const int64_t epoch = runner_->kv_epoch();
  const std::vector<pid_t> children = ChildrenOf(getpid(), kBlocksArgument);
  ASSERT_EQ(children.size(), 1u);
  kill(children[0], SIGKILL);
  siginfo_t ended;
  ASSERT_EQ(waitid(P_PID, children[0], &ended, WEXITED | WNOWAIT), 0);
  EXPECT_NE(runner_->kv_epoch(), epoch);
  ExpectItWorks();
}

TEST_F(RemoteRunnerTest, AFailedStepLosesNothing) {
  Start();
  ExpectItWorks();
  EXPECT_EQ(Fail(kFailToken), absl::InternalError("this step failed"));
  EXPECT_EQ(runner_->kv_epoch(), 0);
  EXPECT_EQ(runner_->Step(Inputs({4}, 3))->sequences[0].token, FakeRunner::Next({1, 2, 3, 4}));
  EXPECT_EQ(restarts_, 0);
}

TEST_F(RemoteRunnerTest, ALostDeviceIsToldAndGetsANewProcess) {
  Start();
  EXPECT_EQ(Fail(kBreakToken), absl::InternalError("the device is lost"));
  EXPECT_EQ(runner_->kv_epoch(), 1);
  ExpectItWorks();
  EXPECT_EQ(restarts_, 1);
}

TEST_F(RemoteRunnerTest, WrongAnswersAreAnErrorAndGetANewProcess) {
  Start();
  EXPECT_EQ(Fail(kNoOutputsToken).message(), "runner: found outputs of 0 sequences, expected 1");
  ExpectItWorks();
  options_.command = [](int64_t) {
    return std::vector<std::string>{"/bin/sh", "-c", "echo no message at all >&0; read never"};
  };
  EXPECT_THAT(MakeRemoteRunner(options_).status().ToString(),
              StartsWith("INTERNAL: message: found kind"));
}

TEST_F(RemoteRunnerTest, TheLoadsStatusPassesWhole) {
  load_ = "fails";
  EXPECT_EQ(MakeRemoteRunner(options_).status(),
            absl::DataLossError("tensor x: found 7 bytes, expected 8"));
  load_ = "dies";
  EXPECT_EQ(MakeRemoteRunner(options_).status(),
            absl::UnavailableError(
                "runner: its process was killed by signal 9 (Killed) while it loaded the model"));
  options_.command = [](int64_t) { return std::vector<std::string>{"/no/such/program"}; };
  EXPECT_EQ(MakeRemoteRunner(options_).status().message(),
            "runner: its process exited with status 127 while it loaded the model");
}

TEST_F(RemoteRunnerTest, OneThatAlwaysDiesIsNotStartedForEver) {
  Start();
  EXPECT_TRUE(absl::IsUnavailable(Fail(kKillToken)));
  load_ = "fails";
  EXPECT_EQ(Fail(1), absl::DataLossError("tensor x: found 7 bytes, expected 8"));
  load_ = "works";
  EXPECT_TRUE(absl::IsUnavailable(Fail(kKillToken)));
  EXPECT_EQ(Fail(1),
            absl::UnavailableError(
                "runner: found 3 deaths of its process in a row, expected a step between them; it "
                "is started again in inf; the last one: runner: its process was killed by signal "
                "9 (Killed) in a step"));
  EXPECT_EQ(restarts_, 2);
}

TEST_F(RemoteRunnerTest, PatienceEnds) {
  options_.patience = absl::ZeroDuration();
  options_.deaths_in_a_row = 1;
  Start();
  EXPECT_TRUE(absl::IsUnavailable(Fail(kKillToken)));
  EXPECT_TRUE(absl::IsUnavailable(Fail(kKillToken)));
  ExpectItWorks();
  EXPECT_EQ(restarts_, 2);
}

TEST_F(RemoteRunnerTest, ASmallerCacheAfterARestartIsRefused) {
  Start();
  EXPECT_TRUE(absl::IsUnavailable(Fail(kKillToken)));
  blocks_ = "23";
  EXPECT_EQ(Fail(1).message(),
            "KV cache: found 23 blocks of 4 tokens in the runner's new process, expected 24 of 4 "
            "as in the first one: unload the model and load it again");
  blocks_ = kBlocksArgument;
  ExpectItWorks();
}

TEST_F(RemoteRunnerTest, OutlivesTheThreadThatStartedIt) {
  std::thread([this] { Start(); }).join();
  ExpectItWorks();
  EXPECT_EQ(runner_->kv_epoch(), 0);
}

// However a process ends, so do its runners: here it is killed while its runner is in a step.
TEST_F(RemoteRunnerTest, ItsProcessEndsWithItsParentInTheMiddleOfAStep) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    // Beyond the exec, the writing end is the runner's process's alone.
    options_.command = [&](int64_t) {
      return std::vector<std::string>{FAKE_RUNNER_PATH, kBlocksArgument, "works",
                                      std::to_string(ends[1])};
    };
    const auto runner = MakeRemoteRunner(options_);
    close(ends[1]);
    if (runner.ok()) (void)(*runner)->Step(Inputs({kHangToken}));
    _exit(1);
  }
  close(ends[1]);
  char byte = 0;
  ASSERT_EQ(read(ends[0], &byte, 1), 1);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  EXPECT_EQ(read(ends[0], &byte, 1), 0) << "the runner's process has ended, and closed the pipe";
  close(ends[0]);
}

// One request's stream.
struct Stream {
  std::vector<int32_t> tokens;
  absl::Status status;
  absl::Notification ended;

  Flow Take(const EngineEvent& event) {
    tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
    if (event.finish == FinishReason::kNone) return Flow::kContinue;
    status = event.status;
    ended.Notify();
    return Flow::kContinue;
  }
};

EngineRequest Request(std::vector<int32_t> prompt) {
  EngineRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = 6;
  return request;
}

std::vector<int32_t> Continuation(std::vector<int32_t> tokens) {
  std::vector<int32_t> out;
  for (int i = 0; i < 6; ++i) {
    out.push_back(FakeRunner::Next(tokens));
    tokens.push_back(out.back());
  }
  return out;
}

TEST_F(RemoteRunnerTest, ADeathEndsTheStreamsOfItsStepAndNoOthers) {
  Start();
  const auto engine = Engine::Create(std::move(runner_), {});
  const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  // One has blocks in the cache and is held up, another dies, and takes the process along.
  Stream held;
  absl::Notification paused;
  const auto id = engine->Submit(Request(prompt), [&](const EngineEvent& event) {
    held.Take(event);
    if (held.tokens.size() != 1) return Flow::kContinue;
    paused.Notify();
    return Flow::kPause;
  });
  ASSERT_TRUE(id.ok());
  paused.WaitForNotification();
  Stream killed;
  ASSERT_TRUE(engine
                  ->Submit(Request({kKillToken}),
                           [&](const EngineEvent& event) { return killed.Take(event); })
                  .ok());
  killed.ended.WaitForNotification();
  EXPECT_EQ(killed.status.code(), absl::StatusCode::kUnavailable);
  engine->Resume(*id);
  held.ended.WaitForNotification();
  EXPECT_EQ(held.tokens, Continuation(prompt));
  // What the dead process had computed of this prompt is forgotten.
  Stream again;
  ASSERT_TRUE(
      engine->Submit(Request(prompt), [&](const EngineEvent& event) { return again.Take(event); })
          .ok());
  again.ended.WaitForNotification();
  EXPECT_EQ(again.tokens, Continuation(prompt));
  EXPECT_EQ(restarts_, 1);
}

}  // namespace
}  // namespace nibble
