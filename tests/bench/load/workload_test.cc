#include "tests/bench/load/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using testing::Each;
using testing::Lt;

TEST(MixTest, ReadsWhatItNames) {
  for (const char* text : {"128/128", "1000/1000", "1000+128/64"}) {
    const auto mix = ParseMix(text);
    ASSERT_TRUE(mix.ok()) << mix.status();
    EXPECT_EQ(MixName(*mix), text);
  }
  EXPECT_EQ(*ParseMix("1000+128/64"), (Mix{.prefix = 1000, .prompt = 128, .output = 64}));
}

TEST(MixTest, RefusesOthers) {
  for (const char* text : {"", "128", "128/", "/128", "0/1", "1/0", "-1/1", "a/1", "1+2+3/4",
                           "0+1/1", "+1/1", "1/2/3"}) {
    EXPECT_EQ(ParseMix(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(RequestsTest, ShareThePrefixAndNothingElse) {
  const auto requests = MakeRequests({.prefix = 20, .prompt = 10, .output = 5}, 3, 7);
  ASSERT_EQ(requests.size(), 3U);
  for (const LoadRequest& request : requests) {
    ASSERT_EQ(request.prompt.size(), 30U);
    EXPECT_EQ(request.max_tokens, 5);
    EXPECT_THAT(request.prompt, Each(Lt(256)));
    EXPECT_TRUE(std::equal(request.prompt.begin(), request.prompt.begin() + 20,
                           requests[0].prompt.begin()));
  }
  EXPECT_NE(requests[0].prompt, requests[1].prompt);
}

TEST(RequestsTest, FollowTheSeed) {
  const Mix mix = {.prefix = 4, .prompt = 8, .output = 1};
  EXPECT_EQ(MakeRequests(mix, 2, 1)[1].prompt, MakeRequests(mix, 2, 1)[1].prompt);
  EXPECT_NE(MakeRequests(mix, 2, 1)[1].prompt, MakeRequests(mix, 2, 2)[1].prompt);
}

TEST(PoissonTest, ComesAtTheRateInOrder) {
  constexpr int64_t kCount = 10'000;
  const auto arrivals = PoissonArrivals(50, kCount, 3);
  ASSERT_EQ(arrivals.size(), static_cast<size_t>(kCount));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  // 200 s; the deviation of the sum of 10,000 gaps is 1%.
  EXPECT_NEAR(absl::ToDoubleSeconds(arrivals.back()), 200, 8);
  EXPECT_EQ(arrivals, PoissonArrivals(50, kCount, 3));
}

}  // namespace
}  // namespace nibble
