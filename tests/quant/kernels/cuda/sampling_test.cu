// Runs on a GPU only. Bit for bit the reference by sorting, whose distribution is checked too.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/kernels/cuda/sampling.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"
#include "tests/quant/kernels/plan/sampling_reference.h"

namespace nibble {
namespace {

template <class T>
struct Batch {
  int64_t vocab;
  std::vector<std::vector<float>> logits = {};  // exact in T
  std::vector<SamplingRow> rows = {};
  std::vector<int32_t> positions = {};
};

template <class T>
T Narrow(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  return __float2bfloat16(x);
}

template <class T>
std::vector<int32_t> Sample(const Batch<T>& batch) {
  const int64_t stride = (batch.vocab + 7) / 8 * 8;
  std::vector<T> padded;
  for (const std::vector<float>& row : batch.logits) {
    for (const float x : row) padded.push_back(Narrow<T>(x));
    padded.resize(padded.size() + stride - batch.vocab, Narrow<T>(NAN));  // must not be looked at
  }
  DeviceArray<T> logits(padded);
  DeviceArray<SamplingRow> rows(batch.rows);
  DeviceArray<int32_t> positions(batch.positions);
  DeviceArray<int32_t> tokens(batch.rows.size());
  EXPECT_EQ(SampleTokens(LogitRows<T>{logits.data(), static_cast<int64_t>(batch.rows.size()),
                                      batch.vocab, stride},
                         rows.data(), positions.data(), tokens.data(), nullptr),
            absl::OkStatus());
  return tokens.Read();
}

template <class T>
void Add(Batch<T>& batch, std::vector<float> logits, const SamplingOptions& options,
         int32_t position) {
  for (float& x : logits) x = float(Narrow<T>(x));
  batch.logits.push_back(std::move(logits));
  batch.rows.push_back(*MakeSamplingRow(options));
  batch.positions.push_back(position);
}

template <class T>
void ExpectAsReference(const Batch<T>& batch) {
  const std::vector<int32_t> found = Sample(batch);
  for (size_t i = 0; i < found.size(); ++i) {
    const SamplingRow& row = batch.rows[i];
    ASSERT_EQ(found[i], SampleByReference(batch.logits[i], row, batch.positions[i]))
        << "row " << i << " top_k " << row.top_k << " top_p " << row.top_p << " min_p "
        << row.min_p_depth << " seed " << row.seed;
  }
}

const std::vector<SamplingOptions>& EveryKind() {
  static const std::vector<SamplingOptions> kinds = {
      {.temperature = 0},
      {},
      {.temperature = 2},
      {.temperature = 1e-6f},
      {.top_k = 1},
      {.top_k = 50},
      {.top_k = 2000},
      {.top_k = 1 << 30},
      {.top_p = 0.9f},
      {.top_p = 1e-9f},
      {.min_p = 0.05f},
      {.min_p = 1},
      {.temperature = 0.7f, .top_k = 40, .top_p = 0.95f, .min_p = 0.01f},
      {.temperature = 1.5f, .top_k = 5000, .top_p = 0.999f, .min_p = 1e-5f}};
  return kinds;
}

template <class T>
class SamplingTest : public testing::Test {};
using Types = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(SamplingTest, Types);

TYPED_TEST(SamplingTest, AgreesWithSortingBitForBit) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const int64_t vocab : {1, 7, 1000, 32003, 128256, 262144}) {
    SCOPED_TRACE(testing::Message() << "vocab " << vocab);
    Batch<TypeParam> batch{vocab};
    for (SamplingOptions options : EveryKind()) {
      options.seed = random();
      std::vector<float> logits(vocab);
      for (float& x : logits) x = 3 * normal(random);
      Add(batch, logits, options, static_cast<int32_t>(random() % 5000));
    }
    ExpectAsReference(batch);
  }
}

// Far more tokens of one weight, or within one bucket, than a block has threads.
TYPED_TEST(SamplingTest, CrowdsOfEqualAndOfCloseLogits) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.01f, 0.01f);
  constexpr int64_t kVocab = 200000;
  Batch<TypeParam> batch{kVocab};
  for (SamplingOptions options : EveryKind()) {
    options.seed = random();
    Add(batch, std::vector<float>(kVocab, 1.f), options, 3);
    std::vector<float> close(kVocab);
    for (float& x : close) x = uniform(random);
    Add(batch, close, options, 4);
    std::vector<float> banned(kVocab, -INFINITY);
    banned[kVocab - 1] = -5;
    banned[77] = -5.5f;
    Add(batch, banned, options, 5);
  }
  ExpectAsReference(batch);
}

TYPED_TEST(SamplingTest, ARowDependsOnNoOther) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Batch<TypeParam> all{5000};
  for (int i = 0; i < 20; ++i) {
    std::vector<float> logits(5000);
    for (float& x : logits) x = normal(random);
    Add(all, logits, {.top_p = 0.8f, .seed = random()}, i);
  }
  const std::vector<int32_t> together = Sample(all);
  for (int i = 0; i < 20; ++i) {
    const Batch<TypeParam> one{5000, {all.logits[i]}, {all.rows[i]}, {all.positions[i]}};
    EXPECT_EQ(Sample(one)[0], together[i]);
  }
}

TYPED_TEST(SamplingTest, RowsWithoutAFiniteLargestGiveMinusOne) {
  Batch<TypeParam> batch{10};
  for (const SamplingOptions& options : {SamplingOptions{}, SamplingOptions{.temperature = 0}}) {
    std::vector<float> logits(10, 0.f);
    logits[4] = NAN;
    Add(batch, logits, options, 0);
    logits[4] = INFINITY;
    Add(batch, logits, options, 0);
    Add(batch, std::vector<float>(10, -INFINITY), options, 0);
  }
  EXPECT_EQ(Sample(batch), std::vector<int32_t>(6, -1));
}

// Pearson's statistic of 100,000 draws against the softmax in double precision. With 39 degrees of
// freedom it exceeds 100 once in 3 million runs (Wilson-Hilferty: z = 4.97).
TYPED_TEST(SamplingTest, DrawsFollowTheSoftmax) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr int kVocab = 40;
  constexpr int kDraws = 100000;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = normal(random);
  Batch<TypeParam> batch{kVocab};
  for (int i = 0; i < kDraws; ++i) Add(batch, logits, {.temperature = 1.3f, .seed = seed}, i);
  std::vector<double> expected;
  double sum = 0;
  for (const float x : batch.logits[0]) {
    expected.push_back(std::exp(double{x} / 1.3));
    sum += expected.back();
  }
  std::vector<int> counts(kVocab);
  for (const int32_t token : Sample(batch)) ++counts.at(token);
  double statistic = 0;
  for (int i = 0; i < kVocab; ++i) {
    const double mean = kDraws * expected[i] / sum;
    statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  EXPECT_LT(statistic, 100);
}

TEST(SampleTokens, RefusesShapesOutsideItsRange) {
  DeviceArray<float> logits(64);
  DeviceArray<SamplingRow> rows(1);
  DeviceArray<int32_t> ints(1);
  const auto status = [&](int64_t vocab, int64_t stride) {
    return SampleTokens(LogitRows<float>{logits.data(), 1, vocab, stride}, rows.data(), ints.data(),
                        ints.data(), nullptr);
  };
  EXPECT_EQ(status(10, 12).message(),
            "logits: found 1 rows of 10 at a stride of 12, expected 1..262144 and a stride that is "
            "a multiple of 8");
  EXPECT_FALSE(status(0, 8).ok());
  EXPECT_FALSE(status(262145, 262152).ok());
}

}  // namespace
}  // namespace nibble
