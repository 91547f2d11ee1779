#include "server/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include "tests/server/engine/fake_runner.h"

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;

constexpr int32_t kBlockSize = 4;

std::vector<int32_t> Counting(int32_t first, int64_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<int32_t> Continuation(std::vector<int32_t> tokens, int64_t count) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(FakeRunner::Next(tokens));
    tokens.push_back(out.back());
  }
  return out;
}

EngineRequest Ask(std::vector<int32_t> prompt, int64_t max_tokens) {
  EngineRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// What became of one choice.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<int32_t> scored;
  FinishReason finish = FinishReason::kNone;
  int64_t cached = 0;
};

// A scheduler and a model, stepped by hand.
class Stepper {
 public:
  Stepper(int32_t blocks, const Scheduler::Options& options)
      : pool_{.blocks = blocks, .block_size = kBlockSize},
        runner_(pool_),
        scheduler(pool_, options) {}

  void Submit(RequestId id, const EngineRequest& request) { scheduler.Submit(id, request, now); }

  // The (request's first token, position, number of tokens) of every sequence of the step. Checks
  // that nobody writes where another reads.
  using Row = std::tuple<uint64_t, int64_t, int64_t>;
  std::vector<Row> Step() {
    std::vector<Scheduler::Delivery> deliveries;
    const StepInputs& inputs = scheduler.Plan(now, deliveries);
    CheckWrites(inputs);
    std::vector<Row> rows;
    for (const SequenceInput& input : inputs.sequences) {
      rows.emplace_back(input.sequence, input.position, input.tokens.size());
    }
    if (!rows.empty()) scheduler.Apply(runner_.Step(inputs), deliveries);
    for (const Scheduler::Delivery& delivery : deliveries) Take(delivery);
    now += absl::Milliseconds(1);
    return rows;
  }
  void StepUntilEmpty() {
    for (int i = 0; i < 10000 && !scheduler.empty(); ++i) Step();
    ASSERT_TRUE(scheduler.empty());
  }
  void FailNext() { runner_.FailNext(); }
  void LoseCache() {
    runner_.LoseCache();
    scheduler.LoseCache();
  }

  absl::Time now = absl::UnixEpoch();
  std::map<std::pair<RequestId, int32_t>, Outcome> outcomes;
  std::set<RequestId> over;

 private:
  static void CheckWrites(const StepInputs& inputs) {
    std::map<int32_t, int> readers;
    for (const SequenceInput& input : inputs.sequences) {
      for (const int32_t block : std::set(input.blocks.begin(), input.blocks.end())) {
        ++readers[block];
      }
    }
    for (const SequenceInput& input : inputs.sequences) {
      for (size_t i = input.position / kBlockSize; i < input.blocks.size(); ++i) {
        ASSERT_EQ(readers[input.blocks[i]], 1) << "a block is written and shared";
      }
    }
  }

  void Take(const Scheduler::Delivery& delivery) {
    const EngineEvent& event = delivery.event;
    Outcome& outcome = outcomes[{delivery.request, event.choice}];
    ASSERT_EQ(outcome.finish, FinishReason::kNone) << "a choice was told of after its end";
    outcome.tokens.insert(outcome.tokens.end(), event.tokens.begin(), event.tokens.end());
    for (const TokenLogprob& scored : event.prompt_logprobs) outcome.scored.push_back(scored.token);
    outcome.finish = event.finish;
    outcome.cached = event.cached_prompt_tokens;
    if (delivery.last) {
      ASSERT_TRUE(over.insert(delivery.request).second);
    }
  }

  KvPool pool_;
  FakeRunner runner_;

 public:
  Scheduler scheduler;
};

TEST(SchedulerTest, StreamsDoNotWaitForPrompts) {
  Stepper stepper(100, {.max_step_tokens = 8, .max_sequences = 4});
  stepper.Submit(1, Ask(Counting(0, 3), 10));
  stepper.Submit(2, Ask(Counting(100, 12), 2));
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{1, 0, 3}, Stepper::Row{2, 0, 5}));
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{1, 3, 1}, Stepper::Row{2, 5, 7}));
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{1, 4, 1}, Stepper::Row{2, 12, 1}));
  stepper.StepUntilEmpty();
  EXPECT_EQ((stepper.outcomes[{1, 0}].tokens), Continuation(Counting(0, 3), 10));
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(100, 12), 2));
}

TEST(SchedulerTest, AKnownPrefixIsNotComputedAgain) {
  Stepper stepper(100, {});
  stepper.Submit(1, Ask(Counting(0, 11), 6));
  stepper.StepUntilEmpty();
  // 17 tokens, the last never computed: four full blocks are known, the output's too.
  std::vector<int32_t> longer = Counting(0, 11);
  for (const int32_t token : stepper.outcomes[{1, 0}].tokens) longer.push_back(token);
  stepper.Submit(2, Ask(longer, 3));
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{2, 16, 1}));
  stepper.StepUntilEmpty();
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(longer, 3));
  EXPECT_EQ((stepper.outcomes[{2, 0}].cached), 16);
  EXPECT_EQ(stepper.scheduler.stats().cached_tokens, 16);
}

TEST(SchedulerTest, ThePromptsLastTokenIsAlwaysComputed) {
  Stepper stepper(100, {});
  for (RequestId id = 1; id <= 2; ++id) {
    stepper.Submit(id, Ask(Counting(0, 8), 1));
    stepper.StepUntilEmpty();
  }
  EXPECT_EQ((stepper.outcomes[{2, 0}].cached), 4);
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(0, 8), 1));
}

TEST(SchedulerTest, ChoicesShareTheirPromptsBlocks) {
  Stepper stepper(100, {});
  EngineRequest request = Ask(Counting(0, 10), 4);
  request.n = 3;
  stepper.Submit(1, request);
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{1, 0, 10}));
  EXPECT_THAT(stepper.Step(),
              ElementsAre(Stepper::Row{1, 10, 1}, Stepper::Row{2, 8, 2}, Stepper::Row{3, 8, 2}));
  // Two shared blocks, and one of its own for each.
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 5);
  stepper.StepUntilEmpty();
  for (int32_t choice = 0; choice < 3; ++choice) {
    EXPECT_EQ((stepper.outcomes[{1, choice}].tokens), Continuation(Counting(0, 10), 4));
  }
}

TEST(SchedulerTest, ChoicesGoOnWhenTheFirstOneFails) {
  Stepper stepper(100, {});
  EngineRequest request = Ask(Counting(0, 10), 4);
  request.n = 2;
  stepper.Submit(1, request);
  stepper.FailNext();
  stepper.StepUntilEmpty();
  EXPECT_EQ((stepper.outcomes[{1, 0}].finish), FinishReason::kError);
  EXPECT_EQ((stepper.outcomes[{1, 1}].tokens), Continuation(Counting(0, 10), 4));
}

TEST(SchedulerTest, TheLastInTheOrderGivesWayAndIsComputedAgain) {
  // Six blocks: two requests of 8 + 8 tokens need eight.
  Stepper stepper(6, {});
  stepper.Submit(1, Ask(Counting(0, 8), 8));
  stepper.Submit(2, Ask(Counting(100, 8), 8));
  stepper.StepUntilEmpty();
  EXPECT_GT(stepper.scheduler.stats().preemptions, 0);
  EXPECT_EQ((stepper.outcomes[{1, 0}].tokens), Continuation(Counting(0, 8), 8));
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(100, 8), 8));
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 0);
}

TEST(SchedulerTest, APriorityIsAHeadStartAndNobodyStarves) {
  Stepper stepper(100, {.max_sequences = 1, .priority_head_start = absl::Milliseconds(40)});
  stepper.Submit(1, Ask({1}, 4));
  stepper.Step();
  stepper.Submit(2, Ask({2}, 4));
  EngineRequest urgent = Ask({3}, 4);
  urgent.priority = 1;
  RequestId next = 3;
  stepper.Submit(next++, urgent);
  std::vector<RequestId> order;
  std::set<RequestId> seen;
  for (int step = 0; step < 200; ++step) {
    if (step % 4 == 0) stepper.Submit(next++, urgent);  // as fast as they can be served
    stepper.Step();
    for (const RequestId id : stepper.over) {
      if (seen.insert(id).second) order.push_back(id);
    }
  }
  // The urgent one preempts; what arrived more than a head start earlier goes before it.
  EXPECT_EQ(order.front(), 3);
  const auto place = std::ranges::find(order, RequestId{2}) - order.begin();
  EXPECT_GT(place, 5);
  EXPECT_LT(place, 20);
}

TEST(SchedulerTest, APausedRequestLosesItsBlocksOnlyToThoseWhoNeedThem) {
  Stepper stepper(4, {});
  stepper.Submit(1, Ask(Counting(0, 7), 4));
  stepper.Step();
  stepper.scheduler.SetPaused(1, true);
  EXPECT_THAT(stepper.Step(), IsEmpty());
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 2);
  stepper.Submit(2, Ask(Counting(100, 12), 4));
  for (int i = 0; i < 10; ++i) stepper.Step();
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(100, 12), 4));
  EXPECT_EQ((stepper.outcomes[{1, 0}].tokens).size(), 1);
  stepper.scheduler.SetPaused(1, false);
  stepper.StepUntilEmpty();
  EXPECT_EQ((stepper.outcomes[{1, 0}].tokens), Continuation(Counting(0, 7), 4));
}

TEST(SchedulerTest, CancelledAndLateRequestsFreeTheirBlocksAtOnce) {
  Stepper stepper(100, {});
  EngineRequest late = Ask(Counting(0, 9), 50);
  late.deadline = stepper.now + absl::Milliseconds(2);
  stepper.Submit(1, late);
  stepper.Submit(2, Ask(Counting(100, 9), 50));
  stepper.Step();
  EXPECT_EQ(stepper.scheduler.NextDeadline(), late.deadline);
  stepper.scheduler.Cancel(2);
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row{1, 9, 1}));
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 3);
  stepper.Step();
  EXPECT_TRUE(stepper.scheduler.empty());
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 0);
  EXPECT_EQ((stepper.outcomes[{1, 0}].finish), FinishReason::kDeadline);
  EXPECT_EQ((stepper.outcomes[{2, 0}].finish), FinishReason::kCancelled);
}

TEST(SchedulerTest, ScoresAreToldOnceThoughThePromptIsComputedTwice) {
  Stepper stepper(6, {.max_step_tokens = 8, .max_sequences = 4});
  EngineRequest scored = Ask(Counting(0, 20), 0);
  scored.score_prompt = true;
  stepper.Submit(1, scored);
  stepper.Step();
  EngineRequest urgent = Ask(Counting(100, 12), 8);
  urgent.priority = 1;
  stepper.Submit(2, urgent);
  stepper.StepUntilEmpty();
  EXPECT_EQ(stepper.scheduler.stats().preemptions, 1);
  EXPECT_THAT((stepper.outcomes[{1, 0}].scored), ElementsAreArray(Counting(1, 19)));
  EXPECT_EQ((stepper.outcomes[{1, 0}].finish), FinishReason::kLength);
}

TEST(SchedulerTest, AKnownPromptIsScoredAllTheSame) {
  Stepper stepper(100, {});
  stepper.Submit(1, Ask(Counting(0, 20), 1));
  stepper.StepUntilEmpty();
  EngineRequest scored = Ask(Counting(0, 20), 2);
  scored.score_prompt = true;
  stepper.Submit(2, scored);
  stepper.StepUntilEmpty();
  EXPECT_THAT((stepper.outcomes[{2, 0}].scored), ElementsAreArray(Counting(1, 19)));
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(0, 20), 2));
}

TEST(SchedulerTest, ALostCacheIsComputedAgainAndRemembersNothing) {
  Stepper stepper(100, {.max_step_tokens = 64, .max_sequences = 4});
  stepper.Submit(1, Ask(Counting(0, 9), 6));
  stepper.Submit(2, Ask(Counting(50, 5), 6));
  stepper.Step();
  stepper.Step();
  stepper.LoseCache();
  EXPECT_EQ(stepper.scheduler.stats().kv_blocks_used, 0);
  // Prompt and the two tokens told since, in one go.
  EXPECT_THAT(stepper.Step(), ElementsAre(Stepper::Row(1, 0, 11), Stepper::Row(2, 0, 7)));
  stepper.StepUntilEmpty();
  stepper.LoseCache();
  stepper.Submit(3, Ask(Counting(0, 9), 6));
  stepper.StepUntilEmpty();
  EXPECT_EQ((stepper.outcomes[{1, 0}].tokens), Continuation(Counting(0, 9), 6));
  EXPECT_EQ((stepper.outcomes[{2, 0}].tokens), Continuation(Counting(50, 5), 6));
  EXPECT_EQ((stepper.outcomes[{3, 0}].tokens), Continuation(Counting(0, 9), 6));
  EXPECT_EQ((stepper.outcomes[{3, 0}].cached), 0);
}

// Everything at random: every choice ends once, with the tokens it gets when it runs alone.
class RandomSchedule : public testing::TestWithParam<bool> {};

TEST_P(RandomSchedule, GivesEveryoneTheirOwnTokens) {
  constexpr int kSteps = 60000;  // of each parameter
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const auto chance = [&](uint32_t one_in) { return random() % one_in == 0; };
  Stepper stepper(24, {.max_step_tokens = 10,
                       .max_sequences = 5,
                       .prefix_caching = GetParam(),
                       .priority_head_start = absl::Milliseconds(50)});
  std::map<RequestId, EngineRequest> requests;
  std::set<RequestId> stopped;
  std::set<RequestId> paused;
  RequestId next = 1;
  for (int step = 0; step < kSteps; ++step) {
    if (chance(6) && stepper.scheduler.waiting() < 20) {
      std::vector<int32_t> prompt = Counting(static_cast<int32_t>(random() % 3), random() % 24);
      for (uint32_t i = random() % 8 + 1; i > 0; --i) prompt.push_back(random() % 4);
      EngineRequest request = Ask(prompt, random() % 20);
      request.n = chance(4) ? 3 : 1;
      request.priority = static_cast<int32_t>(random() % 3);
      request.score_prompt = chance(5);
      if (chance(10)) request.deadline = stepper.now + absl::Milliseconds(random() % 60);
      stepper.Submit(next, request);
      if (request.deadline != absl::InfiniteFuture()) stopped.insert(next);
      requests[next++] = request;
    }
    if (chance(20) && next > 1) {
      const RequestId id = 1 + random() % (next - 1);
      if (!stepper.over.contains(id)) stopped.insert(id);
      stepper.scheduler.Cancel(id);
    }
    if (chance(10) && next > 1) {
      const RequestId id = next - 1 - random() % std::min<RequestId>(next - 1, 8);
      stepper.scheduler.SetPaused(id, true);
      paused.insert(id);
    }
    if (chance(8)) {
      for (const RequestId id : std::exchange(paused, {})) stepper.scheduler.SetPaused(id, false);
    }
    if (chance(300)) stepper.LoseCache();
    stepper.Step();
    if (HasFatalFailure()) return;
    const EngineStats stats = stepper.scheduler.stats();
    ASSERT_LE(stats.running, 5);
    ASSERT_LE(stats.kv_blocks_used, stats.kv_blocks_total);
  }
  for (const RequestId id : paused) stepper.scheduler.SetPaused(id, false);
  stepper.StepUntilEmpty();
  EXPECT_EQ(stepper.over.size(), requests.size());
  for (const auto& [id, request] : requests) {
    const std::vector<int32_t> expected = Continuation(request.prompt, request.max_tokens);
    const std::vector<int32_t> prompt_tail(request.prompt.begin() + 1, request.prompt.end());
    for (int32_t choice = 0; choice < request.n; ++choice) {
      const Outcome& outcome = stepper.outcomes.at({id, choice});
      if (stopped.contains(id) && outcome.finish != FinishReason::kLength) {
        ASSERT_LE(outcome.tokens.size(), expected.size());
        ASSERT_TRUE(std::ranges::equal(outcome.tokens,
                                       absl::MakeSpan(expected).first(outcome.tokens.size())));
        continue;
      }
      ASSERT_EQ(outcome.finish, FinishReason::kLength);
      ASSERT_EQ(outcome.tokens, expected);
      if (request.score_prompt && choice == 0) {
        ASSERT_EQ(outcome.scored, prompt_tail);
      }
    }
  }
  const EngineStats stats = stepper.scheduler.stats();
  EXPECT_EQ(stats.kv_blocks_used, 0) << "blocks leaked";
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_GT(stats.preemptions, 100);
  EXPECT_EQ(stats.cached_tokens > 0, GetParam());
}

INSTANTIATE_TEST_SUITE_P(PrefixCaching, RandomSchedule, testing::Bool());

}  // namespace
}  // namespace nibble
