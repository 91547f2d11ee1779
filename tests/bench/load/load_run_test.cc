#include "tests/bench/load/load_run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// Answers once as many requests are there as it waits for, all of them at once.
class FakeTarget : public LoadTarget {
 public:
  explicit FakeTarget(size_t batch) : batch_(batch) {}

  void Start(const LoadRequest& request, absl::Time, OnTokens on_tokens, OnEnd on_end) override {
    ++started_;
    if (started_ == failing_) return on_end(absl::InternalError("the device is gone"));
    waiting_.push_back({request.max_tokens, std::move(on_tokens), std::move(on_end)});
    most_ = std::max(most_, waiting_.size());
    if (waiting_.size() < batch_) return;
    for (const Waiting& one : std::exchange(waiting_, {})) {
      for (int64_t token = 0; token < one.tokens; ++token) one.on_tokens(1);
      one.on_end(absl::OkStatus());
    }
  }
  absl::StatusOr<double> ProcessorSeconds() override { return 0.0; }

  void FailAt(int64_t request) { failing_ = request; }
  int64_t started() const { return started_; }
  size_t most() const { return most_; }

 private:
  struct Waiting {
    int64_t tokens = 0;
    OnTokens on_tokens;
    OnEnd on_end;
  };
  const size_t batch_;
  std::vector<Waiting> waiting_;
  size_t most_ = 0;
  int64_t started_ = 0;
  int64_t failing_ = 0;
};

constexpr Mix kMix = {.prompt = 2, .output = 3};
constexpr auto kTellNobody = [](const LoadProgress&) {};

TEST(RunLoadTest, AClosedLoopKeepsAsManyAsItShould) {
  FakeTarget target(4);
  const auto traces = RunLoad(target, MakeRequests(kMix, 12, 1), {.concurrency = 4}, kTellNobody);
  ASSERT_TRUE(traces.ok()) << traces.status();
  EXPECT_EQ(target.most(), 4U);
  ASSERT_EQ(traces->size(), 12U);
  for (const RequestTrace& trace : *traces) {
    EXPECT_EQ(trace.tokens.size(), 3U);
    EXPECT_LE(trace.due, trace.tokens.front());
  }
}

TEST(RunLoadTest, AnOpenLoopWaitsForNobody) {
  FakeTarget target(12);
  const auto traces =
      RunLoad(target, MakeRequests(kMix, 12, 1),
              {.arrivals = std::vector<absl::Duration>(12, absl::ZeroDuration())}, kTellNobody);
  ASSERT_TRUE(traces.ok()) << traces.status();
  EXPECT_EQ(target.most(), 12U);
  for (const RequestTrace& trace : *traces) EXPECT_EQ(trace.due, traces->front().due);
}

TEST(RunLoadTest, AnErrorEndsTheLoad) {
  FakeTarget target(1);
  target.FailAt(3);
  const auto traces = RunLoad(target, MakeRequests(kMix, 12, 1), {.concurrency = 1}, kTellNobody);
  EXPECT_EQ(traces.status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(target.started(), 3);
}

TEST(RunLoadTest, ALimitEndsTheLoad) {
  FakeTarget target(1);
  const auto traces = RunLoad(target, MakeRequests(kMix, 12, 1),
                              {.concurrency = 1, .limit = absl::ZeroDuration()}, kTellNobody);
  EXPECT_EQ(traces.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(target.started(), 0);
}

}  // namespace
}  // namespace nibble
