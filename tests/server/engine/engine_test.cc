#include "server/engine/engine.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "absl/synchronization/notification.h"
#include "tests/server/engine/fake_runner.h"

namespace nibble {
namespace {

constexpr KvPool kPool = {.blocks = 24, .block_size = 4};

// What one request's callback saw.
struct Seen {
  absl::Mutex mutex;
  std::map<int32_t, std::vector<int32_t>> tokens;
  std::map<int32_t, FinishReason> finish;
  absl::Status status;
  int ends = 0;
  absl::Notification ended;
};

EngineCallback Record(Seen& seen, int choices = 1) {
  return [&seen, choices](const EngineEvent& event) {
    bool last = false;
    {
      absl::MutexLock lock(&seen.mutex);
      auto& tokens = seen.tokens[event.choice];
      tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
      if (event.finish != FinishReason::kNone) {
        EXPECT_FALSE(seen.finish.contains(event.choice)) << "a choice ended twice";
        seen.finish[event.choice] = event.finish;
        seen.status = event.status;
        last = ++seen.ends == choices;
      }
    }
    if (last) seen.ended.Notify();
    return Flow::kContinue;
  };
}

std::vector<int32_t> Continuation(std::vector<int32_t> tokens, int64_t count) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(FakeRunner::Next(tokens));
    tokens.push_back(out.back());
  }
  return out;
}

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    auto runner = std::make_unique<FakeRunner>(kPool);
    runner_ = runner.get();
    engine_ =
        Engine::Create(std::move(runner), {.schedule = {.max_step_tokens = 8, .max_sequences = 4}});
  }
  static EngineRequest Request(std::vector<int32_t> prompt, int64_t max_tokens) {
    EngineRequest request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    return request;
  }
  FakeRunner* runner_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, TokensComeInOrderThroughChunksAndBlocks) {
  Seen seen;
  std::vector<int32_t> prompt(21);
  for (int i = 0; i < 21; ++i) prompt[i] = i;
  ASSERT_TRUE(engine_->Submit(Request(prompt, 9), Record(seen)).ok());
  seen.ended.WaitForNotification();
  EXPECT_EQ(seen.tokens[0], Continuation(prompt, 9));
  EXPECT_EQ(seen.finish[0], FinishReason::kLength);
  EXPECT_EQ(engine_->stats().kv_blocks_used, 0);
}

TEST_F(EngineTest, StopTokenEndsUnshownAndMinTokensHoldsIt) {
  const std::vector<int32_t> expected = Continuation({1, 2}, 4);
  EngineRequest request = Request({1, 2}, 10);
  request.stop_tokens = {expected[3]};
  Seen seen;
  ASSERT_TRUE(engine_->Submit(request, Record(seen)).ok());
  seen.ended.WaitForNotification();
  EXPECT_EQ(seen.tokens[0], std::vector<int32_t>(expected.begin(), expected.begin() + 3));
  EXPECT_EQ(seen.finish[0], FinishReason::kStop);
}

TEST_F(EngineTest, CancelEndsWithinAStepAndFreesBlocks) {
  runner_->Allow(0);
  Seen seen;
  const auto id = engine_->Submit(Request({1, 2, 3}, 50), Record(seen));
  ASSERT_TRUE(id.ok());
  engine_->Cancel(*id);
  runner_->Allow(1);
  seen.ended.WaitForNotification();
  EXPECT_EQ(seen.finish[0], FinishReason::kCancelled);
  EXPECT_LE(seen.tokens[0].size(), 1);
  EXPECT_EQ(engine_->stats().kv_blocks_used, 0);
  EXPECT_EQ(engine_->stats().running, 0);
}

TEST_F(EngineTest, PausedRequestWaitsWhileOthersRun) {
  Seen other;
  absl::Notification paused;
  absl::Notification ended;
  std::vector<int32_t> tokens;
  const auto pause_once = [&](const EngineEvent& event) {
    tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
    if (event.finish != FinishReason::kNone) ended.Notify();
    if (tokens.size() != 1) return Flow::kContinue;
    paused.Notify();
    return Flow::kPause;
  };
  const auto id = engine_->Submit(Request({4, 5}, 6), pause_once);
  ASSERT_TRUE(id.ok());
  paused.WaitForNotification();
  ASSERT_TRUE(engine_->Submit(Request({6, 7}, 20), Record(other)).ok());
  other.ended.WaitForNotification();
  EXPECT_EQ(other.tokens[0], Continuation({6, 7}, 20));
  EXPECT_FALSE(ended.HasBeenNotified());
  engine_->Resume(*id);
  ended.WaitForNotification();
  EXPECT_EQ(tokens, Continuation({4, 5}, 6));
}

TEST_F(EngineTest, FailedStepEndsItsSequencesAndTheEngineGoesOn) {
  runner_->FailNext();
  Seen failed;
  ASSERT_TRUE(engine_->Submit(Request({1}, 5), Record(failed)).ok());
  failed.ended.WaitForNotification();
  EXPECT_EQ(failed.finish[0], FinishReason::kError);
  EXPECT_EQ(failed.status.message(), "the device is gone");
  Seen next;
  ASSERT_TRUE(engine_->Submit(Request({1}, 5), Record(next)).ok());
  next.ended.WaitForNotification();
  EXPECT_EQ(next.tokens[0], Continuation({1}, 5));
}

TEST_F(EngineTest, ACacheLostInAStepEndsOnlyItsSequences) {
  const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8};
  // One is held up, with tokens in the cache; the other takes the step that fails.
  Seen held;
  absl::Notification paused;
  const EngineCallback record = Record(held);
  const auto id = engine_->Submit(Request(prompt, 6), [&](const EngineEvent& event) {
    record(event);
    if (held.tokens[0].size() != 1) return Flow::kContinue;
    paused.Notify();
    return Flow::kPause;
  });
  ASSERT_TRUE(id.ok());
  paused.WaitForNotification();
  runner_->LoseNext();
  Seen failed;
  ASSERT_TRUE(engine_->Submit(Request({9}, 5), Record(failed)).ok());
  failed.ended.WaitForNotification();
  EXPECT_EQ(failed.status, absl::UnavailableError("the process is gone"));
  engine_->Resume(*id);
  held.ended.WaitForNotification();
  EXPECT_EQ(held.tokens[0], Continuation(prompt, 6));
  Seen again;
  ASSERT_TRUE(engine_->Submit(Request(prompt, 6), Record(again)).ok());
  again.ended.WaitForNotification();
  EXPECT_EQ(again.tokens[0], Continuation(prompt, 6));
}

TEST_F(EngineTest, PassedDeadlineEndsTheRequest) {
  runner_->Allow(0);
  EngineRequest request = Request({1}, 5);
  request.deadline = absl::InfinitePast();
  Seen seen;
  ASSERT_TRUE(engine_->Submit(request, Record(seen)).ok());
  runner_->Allow(-1);
  seen.ended.WaitForNotification();
  EXPECT_EQ(seen.finish[0], FinishReason::kDeadline);
}

TEST_F(EngineTest, RefusalsNameFoundAndExpected) {
  const auto refuse = [&](const EngineRequest& request) {
    return engine_->Submit(request, [](const EngineEvent&) { return Flow::kContinue; }).status();
  };
  EXPECT_EQ(refuse(Request({}, 1)).message(), "prompt: found 0 tokens, expected 1 or more");
  EXPECT_EQ(refuse(Request({1000}, 1)).message(), "prompt: found token id 1000, expected 0 to 999");
  EXPECT_EQ(refuse(Request(std::vector<int32_t>(100, 1), 29)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refuse(Request(std::vector<int32_t>(90, 1), 20)).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(EngineTest, RandomRequestsGetTheirOwnTokensAndLeakNothing) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  struct Expectation {
    EngineRequest request;
    Seen seen;
    bool cancelled = false;
  };
  std::vector<std::unique_ptr<Expectation>> all;
  for (int i = 0; i < 300; ++i) {
    auto& one = *all.emplace_back(std::make_unique<Expectation>());
    std::vector<int32_t> prompt(1 + random() % 30);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % FakeRunner::kVocab);
    one.request = Request(prompt, 1 + random() % 20);
    one.request.n = 1 + static_cast<int32_t>(random() % 3);
    one.request.priority = static_cast<int32_t>(random() % 2);
    const auto id = engine_->Submit(one.request, Record(one.seen, one.request.n));
    ASSERT_TRUE(id.ok()) << id.status();
    one.cancelled = random() % 5 == 0;
    if (one.cancelled) engine_->Cancel(*id);
  }
  for (const auto& one : all) {
    one->seen.ended.WaitForNotification();
    const std::vector<int32_t> expected =
        Continuation(one->request.prompt, one->request.max_tokens);
    for (int32_t choice = 0; choice < one->request.n; ++choice) {
      const std::vector<int32_t>& found = one->seen.tokens[choice];
      ASSERT_LE(found.size(), expected.size());
      EXPECT_TRUE(std::equal(found.begin(), found.end(), expected.begin()));
      if (!one->cancelled) {
        EXPECT_EQ(one->seen.finish[choice], FinishReason::kLength);
        EXPECT_EQ(found, expected);
      }
    }
  }
  EXPECT_EQ(engine_->stats().kv_blocks_used, 0);
}

}  // namespace
}  // namespace nibble
