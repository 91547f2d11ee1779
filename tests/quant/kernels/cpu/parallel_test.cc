#include "quant/kernels/cpu/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nibble {
namespace {

// How often ParallelTasks calls each of `count` tasks.
std::vector<int> Calls(int64_t count) {
  std::vector<std::atomic<int>> calls(count);
  ParallelTasks(count, [&](int64_t i) { ++calls[i]; });
  return {calls.begin(), calls.end()};
}

class ParallelTest : public testing::TestWithParam<bool> {
 protected:
  void Run(const std::function<void()>& work) {
    if (GetParam()) {
      WithThreads(work);
    } else {
      work();
    }
  }
};

TEST_P(ParallelTest, CallsEveryTaskOnce) {
  Run([] {
    for (const int64_t count : {0, 1, 2, 3, 7, 100, 1001}) {
      EXPECT_EQ(Calls(count), std::vector<int>(count, 1));
    }
  });
}

TEST_P(ParallelTest, BlocksCoverEveryIndexOnce) {
  Run([] {
    std::vector<std::atomic<int>> calls(103);
    ParallelBlocks(103, 8, [&](int64_t i) { ++calls[i]; });
    for (const auto& times : calls) EXPECT_EQ(times, 1);
  });
}

TEST_P(ParallelTest, RunsOnceOnEachThreadByItsNumber) {
  Run([] {
    const int threads = ThreadCount();
    std::vector<std::atomic<int>> calls(threads);
    const std::thread::id caller = std::this_thread::get_id();
    RunOnThreads([&](int thread) {
      ++calls[thread];
      EXPECT_EQ(thread == 0, std::this_thread::get_id() == caller);
    });
    for (const auto& times : calls) EXPECT_EQ(times, 1);
  });
}

// What the pieces before wrote is seen by those after, on every thread.
TEST_P(ParallelTest, PiecesFollowEachOther) {
  Run([] {
    constexpr int64_t kCount = 64;
    std::vector<int64_t> values(kCount, 0);
    for (int64_t piece = 0; piece < 2000; ++piece) {
      std::vector<int64_t> next(kCount);
      ParallelTasks(kCount, [&](int64_t i) { next[i] = values[(i + 1) % kCount] + 1; });
      values = next;
    }
    EXPECT_EQ(values, std::vector<int64_t>(kCount, 2000));
  });
}

TEST_P(ParallelTest, ATaskHasOneThread) {
  Run([] {
    std::atomic<int> inner = 0;
    RunOnThreads([&](int) {
      EXPECT_EQ(ThreadCount(), 1);
      ParallelTasks(5, [&](int64_t) { ++inner; });
    });
    EXPECT_EQ(inner, 5 * ThreadCount());
  });
}

INSTANTIATE_TEST_SUITE_P(Kept, ParallelTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "WithThreads" : "ByRegion"; });

TEST(WithThreadsTest, ThrowsWhatTheWorkThrows) {
  EXPECT_THROW(WithThreads([] {
                 EXPECT_EQ(Calls(100), std::vector<int>(100, 1));
                 throw std::runtime_error("torn");
               }),
               std::runtime_error);
  EXPECT_EQ(Calls(100), std::vector<int>(100, 1));
}

TEST(WithThreadsTest, MayStandInItself) {
  WithThreads([] { WithThreads([] { EXPECT_EQ(Calls(100), std::vector<int>(100, 1)); }); });
}

TEST(ExpectReadsTest, IsAHint) {
  const std::vector<uint8_t> some(100'000);
  ExpectReads({absl::MakeConstSpan(some)});
  WithThreads([&] {
    const absl::Span<const uint8_t> all(some);
    const std::vector<std::vector<absl::Span<const uint8_t>>> expectations = {
        {}, {all}, {all.first(1), all.subspan(7, 0), all.last(9)}, {all.first(1)}};
    for (int round = 0; round < 200; ++round) {
      ExpectReads(expectations[round % expectations.size()]);
      ASSERT_EQ(Calls(10), std::vector<int>(10, 1));
    }
  });
}

}  // namespace
}  // namespace nibble
