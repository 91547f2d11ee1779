#include "server/runner/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <vector>

namespace nibble {
namespace {

int32_t Choose(SequenceInput input, std::vector<float> logits) {
  if (input.tokens.empty()) input.tokens = {0};
  return ChooseToken(input, absl::MakeSpan(logits));
}

TEST(ChooseToken, GreedyTiesGoToTheLowestId) { EXPECT_EQ(Choose({}, {0.f, 2.f, 1.f, 2.f}), 1); }

TEST(ChooseToken, BiasAndBansComeBeforeTheChoice) {
  SequenceInput input;
  input.sampling.logit_bias = {{3, 5.f}};
  EXPECT_EQ(Choose(input, {0.f, 2.f, 1.f, 0.f}), 3);
  input.banned = {3};
  EXPECT_EQ(Choose(input, {0.f, 2.f, 1.f, 0.f}), 1);
}

TEST(ChooseToken, PenaltiesByHand) {
  SequenceInput input;
  input.history = {0, 1, 1};  // 0 is the prompt
  input.history_prompt = 1;
  input.sampling.repetition_penalty = 2;
  // 3/2 = 1.5, 4/2 = 2, 1.6 unseen: id 1.
  EXPECT_EQ(Choose(input, {3.f, 4.f, 1.6f}), 1);
  input.sampling.frequency_penalty = 0.3f;
  // id 1: 2 - 2 * 0.3 = 1.4; id 0 stands in the prompt only: 1.5; id 2: 1.6.
  EXPECT_EQ(Choose(input, {3.f, 4.f, 1.6f}), 2);
  // Negative logits grow more negative.
  EXPECT_EQ(Choose(input, {-1.f, -1.f, -1.5f}), 2);
}

TEST(ChooseToken, TopKAndTopPAndMinPCut) {
  // Probabilities 0.5, 0.3, 0.15, 0.05 at temperature 1.
  const std::vector<float> logits = {std::log(.15f), std::log(.5f), std::log(.05f), std::log(.3f)};
  const auto reached = [&](const SamplingParams& sampling) {
    std::map<int32_t, int> counts;
    for (uint64_t seed = 0; seed < 2000; ++seed) {
      SequenceInput input;
      input.sampling = sampling;
      input.sampling.temperature = 1;
      input.sampling.seed = seed;
      ++counts[Choose(input, logits)];
    }
    return counts;
  };
  EXPECT_EQ(reached({.top_k = 2}).size(), 2);
  EXPECT_EQ(reached({.top_p = 0.79f}).size(), 2);
  EXPECT_EQ(reached({.top_p = 0.81f}).size(), 3);
  EXPECT_EQ(reached({.min_p = 0.2f}).size(), 3);
  const auto all = reached({});
  // 2000 draws: five standard deviations of a binomial are below 5 * sqrt(2000 / 4) = 112.
  EXPECT_NEAR(all.at(1), 1000, 112);
  EXPECT_NEAR(all.at(3), 600, 112);
  EXPECT_NEAR(all.at(0), 300, 112);
  EXPECT_NEAR(all.at(2), 100, 112);
}

// The definition: every id in order of probability, cut, then drawn by the running sum.
int32_t DefinedChoice(const SequenceInput& input, const std::vector<float>& logits) {
  const SamplingParams& sampling = input.sampling;
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::ranges::stable_sort(ids, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (sampling.top_k > 0) ids.resize(sampling.top_k);
  std::vector<double> weights;
  double sum = 0;
  for (const int32_t id : ids) {
    weights.push_back(std::exp((static_cast<double>(logits[id]) - logits[ids[0]]) /
                               static_cast<double>(sampling.temperature)));
    sum += weights.back();
  }
  size_t kept = 0;
  double mass = 0;
  while (kept < ids.size() && weights[kept] >= sampling.min_p * weights[0] &&
         (kept == 0 || mass < sampling.top_p)) {
    mass += weights[kept++] / sum;
  }
  double left = UniformDraw(sampling.seed, input.position + 1) * mass;
  for (size_t i = 0; i < kept; ++i) {
    left -= weights[i] / sum;
    if (left < 0) return ids[i];
  }
  return ids[kept - 1];
}

TEST(ChooseToken, OfManyIdsFollowsTheDefinition) {
  const uint32_t seed = 5;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> logits(5000);
  for (float& logit : logits) logit = std::round(8 * normal(random)) / 8;  // with many ties
  for (const SamplingParams& sampling : std::vector<SamplingParams>{{},
                                                                    {.top_k = 1},
                                                                    {.top_k = 700},
                                                                    {.top_p = 0.3f},
                                                                    {.top_p = 0.9f},
                                                                    {.min_p = 0.01f},
                                                                    {.top_k = 90, .top_p = 0.7f}}) {
    for (const float temperature : {0.3f, 1.f, 3.f}) {
      for (uint64_t draw = 0; draw < 50; ++draw) {
        SequenceInput input;
        input.tokens = {0};
        input.sampling = sampling;
        input.sampling.temperature = temperature;
        input.sampling.seed = draw;
        ASSERT_EQ(Choose(input, logits), DefinedChoice(input, logits)) << "draw " << draw;
      }
    }
  }
}

TEST(ChooseToken, DrawDependsOnSeedAndPositionAlone) {
  EXPECT_EQ(UniformDraw(7, 3), UniformDraw(7, 3));
  EXPECT_NE(UniformDraw(7, 3), UniformDraw(7, 4));
  EXPECT_NE(UniformDraw(7, 3), UniformDraw(8, 3));
}

TEST(Logprob, IsLogSoftmaxWithTheBestBeside) {
  const std::vector<float> logits = {1.f, 3.f, 2.f};
  const double sum = std::exp(1.0) + std::exp(3.0) + std::exp(2.0);
  const TokenLogprob found = Logprob(logits, 0, 2);
  EXPECT_NEAR(found.logprob, 1 - std::log(sum), 1e-6);
  ASSERT_EQ(found.top.size(), 2);
  EXPECT_EQ(found.top[0].first, 1);
  EXPECT_EQ(found.top[1].first, 2);
  EXPECT_NEAR(found.top[0].second, 3 - std::log(sum), 1e-6);
}

}  // namespace
}  // namespace nibble
