#include "quant/model/cuda/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace nibble {
namespace {

using testing::ElementsAre;

constexpr AttentionShape kShape = {.group = 4, .kv_heads = 2, .page_size = 16};

std::vector<int32_t> Ints(absl::Span<const int32_t> image, int64_t begin, int64_t count) {
  return {image.begin() + begin, image.begin() + begin + count};
}

TEST(StepPlanTest, DecodesStandBeforePrefills) {
  const std::vector<int32_t> blocks = {3, 4, 5};
  const std::vector<int32_t> prompt = {10, 11, 12};
  const std::vector<int32_t> one = {20};
  const std::vector<int32_t> other = {30};
  const std::vector<CudaSequence> sequences = {
      {.tokens = prompt, .position = 16, .blocks = blocks, .sample = true, .sampling = {.seed = 7}},
      {.tokens = one, .position = 33, .blocks = blocks},
      {.tokens = other, .position = 2, .blocks = blocks, .sample = true, .sampling = {.seed = 9}}};
  EXPECT_THAT(BatchOrder(sequences), ElementsAre(1, 2, 0));

  const StepLimits limits = LimitsOf(kShape, sequences);
  EXPECT_EQ(limits.tokens, 5);
  EXPECT_EQ(limits.draws, 2);
  const StepImage at(limits);
  std::vector<int32_t> image(at.end);
  const absl::StatusOr<StepPlan> plan = PlanStep(limits, sequences, absl::MakeSpan(image));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->tokens, 5);
  EXPECT_EQ(plan->draws, 2);
  EXPECT_EQ(plan->decode->tokens, 2);
  EXPECT_EQ(plan->prefill->tokens, 3);
  EXPECT_THAT(Ints(image, at.ids, 5), ElementsAre(20, 30, 10, 11, 12));
  EXPECT_THAT(Ints(image, at.positions, 5), ElementsAre(33, 2, 16, 17, 18));
  EXPECT_THAT(Ints(image, at.draw_rows, 2), ElementsAre(1, 4));
  EXPECT_THAT(Ints(image, at.draw_positions, 2), ElementsAre(3, 19));
  const auto* const rows = reinterpret_cast<const SamplingRow*>(&image[at.draws]);
  EXPECT_EQ(rows[0].seed, 9u);
  EXPECT_EQ(rows[1].seed, 7u);
  // Slots of the cache: block * 16 + the place in the block.
  const AttentionImage decode(*limits.decode);
  EXPECT_THAT(Ints(image, at.decode + decode.slots, 2), ElementsAre(5 * 16 + 1, 3 * 16 + 2));
  const AttentionImage prefill(*limits.prefill);
  EXPECT_THAT(Ints(image, at.prefill + prefill.slots, 3),
              ElementsAre(4 * 16, 4 * 16 + 1, 4 * 16 + 2));
}

TEST(StepPlanTest, UnusedRowsOfAGraphTouchNothing) {
  const std::vector<int32_t> blocks = {1};
  const std::vector<int32_t> one = {20};
  const StepLimits limits = DecodeLimits(kShape, 4, 2, 512);
  const StepImage at(limits);
  std::vector<int32_t> image(at.end, 77);
  const absl::StatusOr<StepPlan> plan =
      PlanStep(limits, {{{.tokens = one, .position = 5, .blocks = blocks, .sample = true}}},
               absl::MakeSpan(image));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->Padded().tokens, 4);
  EXPECT_EQ(plan->Padded().decode->tokens, 4);
  EXPECT_THAT(Ints(image, at.ids, 4), ElementsAre(20, 0, 0, 0));
  EXPECT_THAT(Ints(image, at.decode + AttentionImage(*limits.decode).slots, 4),
              ElementsAre(16 + 5, -1, -1, -1));
}

TEST(StepPlanTest, RefusesWhatDoesNotFit) {
  const std::vector<int32_t> blocks(40, 1);
  const std::vector<int32_t> one = {20};
  const CudaSequence sequence = {.tokens = one, .position = 600, .blocks = blocks, .sample = true};
  const auto status = [&](const StepLimits& limits, const std::vector<CudaSequence>& sequences) {
    std::vector<int32_t> image(StepImage(limits).end);
    return PlanStep(limits, sequences, absl::MakeSpan(image)).status().code();
  };
  // 601 keys are 2 chunks of 256 or more.
  EXPECT_EQ(status(DecodeLimits(kShape, 1, 1, 4096), {sequence}),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status(DecodeLimits(kShape, 1, 2, 4096), {sequence}), absl::StatusCode::kOk);
  EXPECT_EQ(status(DecodeLimits(kShape, 1, 2, 4096), {sequence, sequence}),
            absl::StatusCode::kResourceExhausted);
}

// Any step fits its own limits, and any decode step those for its context with MostDecodeChunks.
TEST(StepPlanTest, LimitsHoldWhatTheyAreMadeFor) {
  constexpr int kSeed = 20261126;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  constexpr int64_t kContext = 4096;
  const std::vector<int32_t> ids(kContext, 1);
  const std::vector<int32_t> blocks(kContext / 16, 2);
  for (int round = 0; round < 200; ++round) {
    std::vector<CudaSequence> sequences;
    std::vector<CudaSequence> decodes;
    for (uint32_t i = 0, count = 1 + random() % 8; i < count; ++i) {
      const size_t length = 1 + random() % (random() % 2 == 0 ? 1 : 700);
      const auto position = static_cast<int64_t>(random() % (kContext - length + 1));
      const CudaSequence sequence = {.tokens = absl::MakeConstSpan(ids).first(length),
                                     .position = position,
                                     .blocks = blocks,
                                     .sample = random() % 2 == 0};
      sequences.push_back(sequence);
      decodes.push_back(sequence);
      decodes.back().tokens = absl::MakeConstSpan(ids).first(1);
    }
    for (const int32_t kv_heads : {1, 2, 8, 32}) {
      const AttentionShape shape = {.group = 4, .kv_heads = kv_heads};
      const StepLimits own = LimitsOf(shape, sequences);
      std::vector<int32_t> image(StepImage(own).end);
      EXPECT_TRUE(PlanStep(own, sequences, absl::MakeSpan(image)).ok());
      const StepLimits any = DecodeLimits(shape, static_cast<int32_t>(decodes.size()),
                                          MostDecodeChunks(kContext, kv_heads), kContext);
      image.resize(StepImage(any).end);
      for (CudaSequence& sequence : decodes) sequence.sample = true;
      const absl::Status status = PlanStep(any, decodes, absl::MakeSpan(image)).status();
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

}  // namespace
}  // namespace nibble
