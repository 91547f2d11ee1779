#include "quant/kernels/plan/attention_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

AttentionLimits Limits(AttentionRegime regime) {
  return {.regime = regime,
          .group = 4,
          .kv_heads = 8,
          .page_size = 16,
          .sequences = 4,
          .tokens = 600,
          .pages = 400,
          .work = 100,
          .partials = 1200};
}

std::vector<int32_t> Pages(int32_t first, int32_t count) {
  std::vector<int32_t> pages(count);
  std::iota(pages.begin(), pages.end(), first);
  return pages;
}

struct Planned {
  AttentionPlan plan;
  AttentionImage at;
  std::vector<int32_t> image;
  std::vector<int32_t> Slice(int64_t begin, int64_t count) const {
    return {image.begin() + begin, image.begin() + begin + count};
  }
  bool IsWork(int32_t i) const {
    return reinterpret_cast<const uint8_t*>(image.data() + at.work_valid)[i] == 1;
  }
};

Planned Plan(const AttentionLimits& limits, const std::vector<AttentionSequence>& sequences) {
  Planned planned{{}, AttentionImage(limits), {}};
  // What an earlier step left must not matter.
  planned.image.assign(planned.at.end, 0x01010101);
  const auto plan = PlanAttention(limits, sequences, absl::MakeSpan(planned.image));
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (plan.ok()) planned.plan = *plan;
  return planned;
}

TEST(AttentionPlan, LaysOutTwoDecodeSequencesByHand) {
  const std::vector<int32_t> a = Pages(10, 2);
  const std::vector<int32_t> b = Pages(50, 35);
  // 17 keys: one chunk of two pages. 540 keys: two of 17 pages, 272 keys.
  const Planned p = Plan(Limits(AttentionRegime::kDecode), {{1, 17, a}, {1, 540, b}});
  EXPECT_EQ(p.plan.tokens, 2);
  EXPECT_EQ(p.plan.work, 3);
  EXPECT_THAT(p.Slice(p.at.positions, 3), ElementsAre(16, 539, 0));
  EXPECT_THAT(p.Slice(p.at.slots, 3), ElementsAre(11 * 16, (50 + 33) * 16 + 11, -1));
  EXPECT_THAT(p.Slice(p.at.partial_begin, 4), ElementsAre(0, 1, 3, 3));
  EXPECT_THAT(p.Slice(p.at.query_begin, 5), ElementsAre(0, 1, 2, 2, 2));
  EXPECT_THAT(p.Slice(p.at.sequence_partial, 5), ElementsAre(0, 1, 3, 3, 3));
  EXPECT_THAT(p.Slice(p.at.page_begin, 5), ElementsAre(0, 2, 36, 36, 36));
  EXPECT_THAT(p.Slice(p.at.lengths, 2), ElementsAre(17, 540));
  EXPECT_THAT(p.Slice(p.at.pages, 4), ElementsAre(10, 11, 50, 51));
  EXPECT_THAT(p.Slice(p.at.work_sequence, 3), ElementsAre(0, 1, 1));
  EXPECT_THAT(p.Slice(p.at.work_tile, 3), ElementsAre(0, 0, 0));
  EXPECT_THAT(p.Slice(p.at.work_chunk, 3), ElementsAre(0, 0, 1));
  EXPECT_THAT(p.Slice(p.at.work_keys, 3), ElementsAre(32, 272, 272));
  EXPECT_THAT(p.Slice(p.at.work_query, 3), ElementsAre(0, 1, 1));
  EXPECT_THAT(p.Slice(p.at.work_queries, 3), ElementsAre(1, 1, 1));
  EXPECT_THAT(p.Slice(p.at.work_length, 3), ElementsAre(17, 540, 540));
  EXPECT_THAT(p.Slice(p.at.work_page, 3), ElementsAre(0, 2, 2 + 17));
  EXPECT_TRUE(p.IsWork(2));
  for (int i = 3; i < 100; ++i) EXPECT_FALSE(p.IsWork(i)) << i;
}

TEST(AttentionPlan, DecodeChunksDependOnTheSequenceAlone) {
  const std::vector<int32_t> pages = Pages(0, 200);
  const AttentionLimits limits = Limits(AttentionRegime::kDecode);
  const Planned alone = Plan(limits, {{1, 3000, pages}});
  const Planned among = Plan(limits, {{1, 40, pages}, {1, 3000, pages}, {1, 7, pages}});
  EXPECT_EQ(alone.image[alone.at.work_keys], among.image[among.at.work_keys + 1]);
  EXPECT_EQ(alone.plan.work + 2, among.plan.work);
}

TEST(DecodeChunk, AreEqualPartsOf256KeysOrMore) {
  const auto chunk = [](int32_t length, int32_t kv_heads) {
    return DecodeChunk(length, kv_heads, 16);
  };
  EXPECT_EQ(chunk(1, 8), 16);
  EXPECT_EQ(chunk(511, 8), 512);
  EXPECT_EQ(chunk(512, 8), 256);
  EXPECT_EQ(chunk(1025, 8), 272);      // 4 chunks
  EXPECT_EQ(chunk(17 * 256, 8), 256);  // 132 / 8, rounded up: 17 chunks
  EXPECT_EQ(chunk(17 * 256 + 1, 8), 272);
  EXPECT_EQ(chunk(131072, 8), 7712);  // ceil(131072 / 17) = 7711
  EXPECT_EQ(chunk(16 * 256 + 1, 32), 272);
  EXPECT_EQ(chunk(64 * 256, 1), 256);
  for (int32_t length = 1; length < 9000; ++length) {
    for (const int32_t kv_heads : {1, 8, 32}) {
      const int32_t keys = chunk(length, kv_heads);
      EXPECT_LE((length + keys - 1) / keys, MostDecodeChunks(length, kv_heads));
    }
  }
}

// Every (token, key it sees) pair lies in exactly one piece of work, and every piece's place in the
// partial results is its own.
TEST(AttentionPlan, CoversEveryQueryAndKeyOnce) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    const bool decode = round % 2 == 0;
    AttentionLimits limits = Limits(decode ? AttentionRegime::kDecode : AttentionRegime::kPrefill);
    const bool single = round % 4 == 0;  // room for one query a sequence only
    if (single) limits.tokens = limits.sequences;
    limits.group = 1 + static_cast<int32_t>(random() % 8);
    limits.kv_heads = 1 + static_cast<int32_t>(random() % 8);
    const std::vector<int32_t> pages = Pages(0, 100);
    std::vector<AttentionSequence> sequences;
    for (uint32_t i = 0; i <= random() % 4; ++i) {
      const auto length = static_cast<int32_t>(1 + random() % 1600);
      const auto queries = decode ? 1 : 1 + static_cast<int32_t>(random() % std::min(length, 150));
      sequences.push_back({queries, length, pages});
    }
    const Planned p = Plan(limits, sequences);
    const int32_t tile_rows = single ? 8 : decode ? 16 : 128;
    std::map<std::tuple<int, int, int>, int> seen;  // sequence, packed row, chunk
    for (int32_t i = 0; i < p.plan.work; ++i) {
      ASSERT_TRUE(p.IsWork(i));
      const int32_t s = p.image[p.at.work_sequence + i];
      const int32_t rows = sequences[s].queries * limits.group;
      const int32_t tile = p.image[p.at.work_tile + i];
      ASSERT_LT(tile * tile_rows, rows);
      for (int32_t row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
        ++seen[{s, row, p.image[p.at.work_chunk + i]}];
      }
    }
    std::set<int32_t> places;
    size_t expected = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const int32_t chunk =
          p.image[p.at.work_keys +
                  std::distance(p.image.begin() + p.at.work_sequence,
                                std::find(p.image.begin() + p.at.work_sequence,
                                          p.image.begin() + p.at.work_sequence + p.plan.work,
                                          static_cast<int32_t>(s)))];
      const int32_t chunks = (sequences[s].length + chunk - 1) / chunk;
      expected += static_cast<size_t>(sequences[s].queries) * limits.group * chunks;
      const int32_t first = p.image[p.at.query_begin + s];
      for (int32_t q = 0; q < sequences[s].queries; ++q) {
        // The kernel writes query q's chunk c at sequence_partial + q * chunks + c.
        const int32_t begin = p.image[p.at.sequence_partial + s] + q * chunks;
        ASSERT_EQ(p.image[p.at.partial_begin + first + q], begin);
        ASSERT_EQ(p.image[p.at.partial_begin + first + q + 1], begin + chunks);
        for (int32_t c = 0; c < chunks; ++c) ASSERT_TRUE(places.insert(begin + c).second);
      }
    }
    ASSERT_EQ(seen.size(), expected);
    for (const auto& [key, times] : seen) ASSERT_EQ(times, 1);
    ASSERT_LE(places.size(), static_cast<size_t>(limits.partials));
  }
}

TEST(AttentionPlan, APrefillOfFewTokensOverManyKeysIsSplit) {
  const std::vector<int32_t> pages = Pages(0, 400);
  const Planned few = Plan(Limits(AttentionRegime::kPrefill), {{32, 6400, pages}});
  EXPECT_GT(few.plan.work, 8);
  const Planned many = Plan(Limits(AttentionRegime::kPrefill), {{544, 6400, pages}});
  EXPECT_EQ(many.plan.work, 17);  // 17 tiles x 8 heads fill the device unsplit
}

TEST(AttentionPlan, RefusesWhatDoesNotFit) {
  const AttentionLimits limits = Limits(AttentionRegime::kDecode);
  std::vector<int32_t> image(AttentionImage(limits).end);
  const std::vector<int32_t> pages = Pages(0, 500);
  const auto status = [&](const std::vector<AttentionSequence>& sequences) {
    return PlanAttention(limits, sequences, absl::MakeSpan(image)).status();
  };
  EXPECT_EQ(status({{0, 3, pages}}).message(),
            "attention plan: sequence 0: found queries 0, expected at least 1");
  EXPECT_EQ(status({{1, 3, pages}, {4, 3, pages}}).message(),
            "attention plan: sequence 1: found length 3, expected at least its queries, 4");
  EXPECT_EQ(status({{1, 33, absl::MakeConstSpan(pages).first(2)}}).message(),
            "attention plan: sequence 0: found pages 2, expected at least 3");
  const absl::Status full = status({{1, 6500, pages}});
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(full.message(), "attention plan: found 407 pages, expected at most 400");
  EXPECT_THAT(std::string(status(std::vector<AttentionSequence>(5, {1, 1, pages})).message()),
              HasSubstr("found 5 sequences, expected at most 4"));
  image.pop_back();
  EXPECT_THAT(std::string(status({{1, 1, pages}}).message()), HasSubstr("found an image of"));

  AttentionLimits one_query = limits;
  one_query.tokens = one_query.sequences;
  image.resize(AttentionImage(one_query).end);
  EXPECT_EQ(
      PlanAttention(one_query, {{2, 3, pages}}, absl::MakeSpan(image)).status().message(),
      "attention plan: sequence 0: found queries 2, expected with as many tokens as sequences "
      "at most 1");
}

TEST(AttentionPlan, PaddedCoversTheLimits) {
  const std::vector<int32_t> pages = Pages(0, 1);
  const Planned p = Plan(Limits(AttentionRegime::kDecode), {{1, 1, pages}});
  EXPECT_EQ(p.plan.Padded().tokens, 600);
  EXPECT_EQ(p.plan.Padded().work, 100);
}

}  // namespace
}  // namespace nibble
