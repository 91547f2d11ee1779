// Runs on a GPU only. The oracle is double precision on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/attention.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

constexpr int kPageSize = 16;

struct Shape {
  int group;
  int kv_heads;
  int head_dim;
  KvFormat format;
  int heads() const { return group * kv_heads; }
  int dim() const { return StoredHeadDim(head_dim); }
};

// Sequences over one cache whose pages are dealt out at random, with keys and values of their own.
class Fixture {
 public:
  Fixture(const Shape& shape, std::vector<AttentionSequence> sequences, std::mt19937& random)
      : shape_(shape), sequences_(std::move(sequences)) {
    const auto pages_of = [](const AttentionSequence& s) {
      return (s.length + kPageSize - 1) / kPageSize;
    };
    int count = 3;  // some unused
    for (const AttentionSequence& s : sequences_) count += pages_of(s);
    std::vector<int32_t> free(count);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    for (AttentionSequence& s : sequences_) {
      tables_.emplace_back(free.end() - pages_of(s), free.end());
      free.resize(free.size() - pages_of(s));
    }
    for (size_t i = 0; i < sequences_.size(); ++i) sequences_[i].pages = tables_[i];
    const int64_t values = int64_t{count} * kPageSize * shape.kv_heads * shape.dim();
    FillCache(random, values, k_, k_bytes_, kScaleK);
    FillCache(random, values, v_, v_bytes_, kScaleV);
    for (const AttentionSequence& s : sequences_) tokens_ += s.queries;
    q_ = RandomRows(random, int64_t{tokens_} * shape.heads(), shape.dim(), 0);
    ZeroPadding(q_);
  }

  const Shape& shape() const { return shape_; }
  const std::vector<AttentionSequence>& sequences() const { return sequences_; }
  int tokens() const { return tokens_; }
  int width() const { return shape_.heads() * shape_.head_dim; }

  // [tokens, width], and per element the sum of p |v|, by which the errors are measured.
  struct Expected {
    std::vector<std::vector<double>> rows;
    std::vector<std::vector<double>> sizes;
  };
  Expected InDouble() const {
    Expected expected;
    int token = 0;
    for (const AttentionSequence& s : sequences_) {
      for (int i = 0; i < s.queries; ++i, ++token) {
        expected.rows.emplace_back();
        expected.sizes.emplace_back();
        for (int head = 0; head < shape_.heads(); ++head) {
          AttendInDouble(s, s.length - s.queries + i, token, head, expected.rows.back(),
                         expected.sizes.back());
        }
      }
    }
    return expected;
  }

  // The rows of one sequence alone: its queries, the same cache.
  Fixture Only(size_t index) const {
    Fixture one = *this;
    one.sequences_ = {sequences_[index]};
    int first = 0;
    for (size_t i = 0; i < index; ++i) first += sequences_[i].queries;
    one.tokens_ = sequences_[index].queries;
    const int64_t row = int64_t{shape_.heads()} * shape_.dim();
    one.q_.assign(q_.begin() + first * row, q_.begin() + (first + one.tokens_) * row);
    return one;
  }

  const Bf16s& q() const { return q_; }
  const std::vector<uint8_t>& k_bytes() const { return k_bytes_; }
  const std::vector<uint8_t>& v_bytes() const { return v_bytes_; }
  PagedKv View(void* k, void* v) const {
    const bool e4m3 = shape_.format == KvFormat::kE4M3;
    return {k,
            v,
            shape_.format,
            e4m3 ? kScaleK : 1,
            e4m3 ? kScaleV : 1,
            kPageSize,
            shape_.kv_heads,
            shape_.head_dim};
  }

 private:
  static constexpr float kScaleK = 0.03f;
  static constexpr float kScaleV = 0.02f;

  void ZeroPadding(Bf16s& rows) const {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (static_cast<int>(i % shape_.dim()) >= shape_.head_dim) rows[i] = __float2bfloat16(0);
    }
  }

  void FillCache(std::mt19937& random, int64_t count, std::vector<double>& values,
                 std::vector<uint8_t>& bytes, float scale) const {
    Bf16s rows = RandomRows(random, 1, count, 0);
    ZeroPadding(rows);
    if (shape_.format == KvFormat::kBf16) {
      values = Widen(rows);
      const auto* raw = reinterpret_cast<const uint8_t*>(rows.data());
      bytes.assign(raw, raw + count * 2);
      return;
    }
    for (const __nv_bfloat16 x : rows) {
      bytes.push_back(EncodeValue(Format::kE4M3, float(x) / scale));
      values.push_back(double{DecodeValue(Format::kE4M3, bytes.back())} * scale);
    }
  }

  void AttendInDouble(const AttentionSequence& s, int position, int token, int head,
                      std::vector<double>& row, std::vector<double>& sizes) const {
    const int dim = shape_.dim();
    const auto at = [&](int key) {
      const int64_t slot = int64_t{s.pages[key / kPageSize]} * kPageSize + key % kPageSize;
      return (slot * shape_.kv_heads + head / shape_.group) * dim;
    };
    std::vector<double> weights;
    for (int key = 0; key <= position; ++key) {
      double score = 0;
      for (int i = 0; i < shape_.head_dim; ++i) {
        score += double(q_[(int64_t{token} * shape_.heads() + head) * dim + i]) * k_[at(key) + i];
      }
      weights.push_back(score / std::sqrt(static_cast<double>(shape_.head_dim)));
    }
    const double largest = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& w : weights) sum += w = std::exp(w - largest);
    for (int i = 0; i < shape_.head_dim; ++i) {
      double out = 0;
      double size = 0;
      for (int key = 0; key <= position; ++key) {
        out += weights[key] / sum * v_[at(key) + i];
        size += weights[key] / sum * std::fabs(v_[at(key) + i]);
      }
      row.push_back(out);
      sizes.push_back(size);
    }
  }

  Shape shape_;
  std::vector<AttentionSequence> sequences_;
  std::vector<std::vector<int32_t>> tables_;
  int tokens_ = 0;
  Bf16s q_;
  std::vector<double> k_;
  std::vector<double> v_;
  std::vector<uint8_t> k_bytes_;
  std::vector<uint8_t> v_bytes_;
};

constexpr int32_t kSequences = 320;
constexpr int32_t kTokens = 1200;

// As many tokens as sequences give decode its tiles of 8 rows, more those of 16.
AttentionLimits LimitsFor(const Fixture& fixture, AttentionRegime regime, int32_t tokens) {
  return {.regime = regime,
          .group = fixture.shape().group,
          .kv_heads = fixture.shape().kv_heads,
          .page_size = kPageSize,
          .sequences = kSequences,
          .tokens = tokens,
          .pages = 2000,
          .work = 4000,
          .partials = 6000};
}

// Device memory of a call, its step in `image`.
class Runner {
 public:
  Runner(const Fixture& fixture, AttentionRegime regime)
      : Runner(fixture, regime, regime == AttentionRegime::kDecode ? kSequences : kTokens) {}
  Runner(const Fixture& fixture, AttentionRegime regime, int32_t tokens)
      : limits_(LimitsFor(fixture, regime, tokens)),
        host_(AttentionImage(limits_).end, 0x55555555),
        k_(fixture.k_bytes()),
        v_(fixture.v_bytes()),
        q_(size_t{kTokens} * fixture.shape().heads() * fixture.shape().dim()),
        image_(host_.size()),
        workspace_(AttentionWorkspaceBytes(limits_, fixture.shape().head_dim)),
        out_(size_t{kTokens} * fixture.width()),
        codes_(out_.size()),
        scales_(kTokens) {
    Load(fixture);
    call_ = {plan_, image_.data(), fixture.View(k_.data(), v_.data()), q_.data(),
             workspace_.data()};
  }

  // Plans a step of the same shape and cache.
  void Load(const Fixture& fixture) {
    const auto plan = PlanAttention(limits_, fixture.sequences(), absl::MakeSpan(host_));
    ASSERT_EQ(plan.status(), absl::OkStatus());
    plan_ = *plan;
    ExpectCuda(cudaMemcpy(image_.data(), host_.data(), host_.size() * 4, cudaMemcpyHostToDevice));
    ExpectCuda(
        cudaMemcpy(q_.data(), fixture.q().data(), fixture.q().size() * 2, cudaMemcpyHostToDevice));
    ExpectCuda(cudaMemset(out_.data(), 0xff, out_.size() * 2));
    ExpectCuda(cudaMemset(workspace_.data(), 0xff, workspace_.size()));
  }

  void Attend(bool padded, cudaStream_t stream) {
    AttentionCall call = call_;
    call.plan = padded ? plan_.Padded() : plan_;
    ASSERT_EQ(nibble::Attend(call, out_.data(), stream), absl::OkStatus());
    ASSERT_EQ(AttendQuantize(call, codes_.data(), scales_.data(), stream), absl::OkStatus());
  }

  Bf16s out() const { return out_.Read(); }
  std::vector<uint8_t> codes() const { return codes_.Read(); }
  std::vector<float> scales() const { return scales_.Read(); }

 private:
  AttentionLimits limits_;
  std::vector<int32_t> host_;
  AttentionPlan plan_;
  DeviceArray<uint8_t> k_;
  DeviceArray<uint8_t> v_;
  DeviceArray<__nv_bfloat16> q_;
  DeviceArray<int32_t> image_;
  DeviceArray<uint8_t> workspace_;
  DeviceArray<__nv_bfloat16> out_;
  DeviceArray<uint8_t> codes_;
  DeviceArray<float> scales_;
  AttentionCall call_;
};

// The probabilities are rounded to bf16 before they meet the values (2^-8 of each), scores and sums
// are f32 with approximate exponentials (2^-12 of each is far more than they lose).
constexpr double kRelative = 0x1p-8 + 0x1p-12;

void ExpectRight(const Fixture& fixture, Runner& runner) {
  runner.Attend(false, nullptr);
  const Bf16s out = runner.out();
  const std::vector<uint8_t> codes = runner.codes();
  const std::vector<float> scales = runner.scales();
  const Fixture::Expected expected = fixture.InDouble();
  const int width = fixture.width();
  for (int token = 0; token < fixture.tokens(); ++token) {
    SCOPED_TRACE(testing::Message() << "token " << token);
    double amax = 0;
    double worst = 0;
    for (int i = 0; i < width; ++i) {
      const double y = expected.rows[token][i];
      const double error = kRelative * expected.sizes[token][i];
      ASSERT_NEAR(double(out[token * width + i]), y, error + std::ldexp(std::fabs(y) + error, -8))
          << "column " << i;
      amax = std::max(amax, std::fabs(y));
      worst = std::max(worst, error);
    }
    ExpectNearestE4M3(&codes[token * width], scales[token], expected.rows[token], worst / amax);
  }
  ASSERT_TRUE(std::isnan(float(out[fixture.tokens() * width])));  // nothing beyond
}

// What `together` left of sequence `i`, one token, has the bits that it has alone.
void ExpectTheSameAlone(const Fixture& all, size_t i, const Runner& together) {
  Runner alone(all.Only(i), AttentionRegime::kDecode);
  alone.Attend(false, nullptr);
  EXPECT_EQ(alone.scales()[0], together.scales()[i]);
  const std::vector<uint8_t> found = alone.codes();
  const std::vector<uint8_t> codes = together.codes();
  EXPECT_TRUE(std::equal(found.begin(), found.begin() + all.width(),
                         codes.begin() + static_cast<int64_t>(i) * all.width()));
}

class AttentionTest : public testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionTest,
    testing::Values(Shape{1, 2, 64, KvFormat::kBf16}, Shape{3, 3, 64, KvFormat::kBf16},
                    Shape{1, 4, 80, KvFormat::kBf16}, Shape{2, 2, 100, KvFormat::kBf16},
                    Shape{4, 2, 128, KvFormat::kBf16}, Shape{8, 1, 128, KvFormat::kBf16},
                    Shape{20, 1, 64, KvFormat::kBf16}, Shape{3, 2, 64, KvFormat::kE4M3},
                    Shape{1, 2, 80, KvFormat::kE4M3}, Shape{2, 2, 100, KvFormat::kE4M3},
                    Shape{4, 2, 128, KvFormat::kE4M3}));

TEST_P(AttentionTest, DecodeAgreesWithDoublePrecision) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const Fixture fixture(GetParam(), {{1, 1}, {1, 129}, {1, 16}, {1, 1000}, {1, 128}, {1, 3333}},
                        random);
  for (const int32_t tokens : {kSequences, kTokens}) {
    Runner runner(fixture, AttentionRegime::kDecode, tokens);
    ExpectRight(fixture, runner);
  }
}

TEST_P(AttentionTest, ChunkedPrefillAgreesWithDoublePrecision) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const Fixture fixture(GetParam(), {{1, 1}, {100, 100}, {37, 700}, {130, 131}, {5, 1900}}, random);
  Runner runner(fixture, AttentionRegime::kPrefill);
  ExpectRight(fixture, runner);
}

TEST_P(AttentionTest, ADecodedTokenDependsOnNoOtherSequence) {
  std::mt19937 random(17);
  const Fixture all(GetParam(), {{1, 500}, {1, 1}, {1, 3000}, {1, 77}}, random);
  Runner together(all, AttentionRegime::kDecode);
  together.Attend(false, nullptr);
  for (size_t i = 0; i < all.sequences().size(); ++i) ExpectTheSameAlone(all, i, together);
}

// Blocks of one head where there are few sequences, of a head a warp where there are many.
TEST(ManySequences, GiveEachTheBitsItHasAlone) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (const Shape& shape : {Shape{1, 4, 128, KvFormat::kBf16}, Shape{8, 4, 64, KvFormat::kBf16},
                             Shape{4, 4, 128, KvFormat::kE4M3}, Shape{1, 4, 80, KvFormat::kE4M3}}) {
    std::vector<AttentionSequence> sequences = {{1, 1300}};
    for (int i = 0; i < 300; ++i)
      sequences.push_back({1, 1 + static_cast<int32_t>(random() % 150)});
    const Fixture all(shape, sequences, random);
    Runner together(all, AttentionRegime::kDecode);
    ExpectRight(all, together);
    for (size_t i = random() % 20; i < sequences.size(); i += 20) {
      SCOPED_TRACE(testing::Message()
                   << sequences[i].length << " keys, head_dim " << shape.head_dim);
      ExpectTheSameAlone(all, i, together);
    }
  }
}

TEST(AttentionGraph, OneCaptureReplaysAnyStepWithinItsLimits) {
  std::mt19937 random(23);
  const Shape shape{4, 2, 128, KvFormat::kBf16};
  const Fixture all(shape, {{1, 500}, {1, 9}, {1, 2049}}, random);
  Runner runner(all, AttentionRegime::kDecode);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  ExpectCuda(cudaStreamCreate(&stream));
  ExpectCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  runner.Attend(true, stream);
  ExpectCuda(cudaStreamEndCapture(stream, &graph));
  ExpectCuda(cudaGraphInstantiate(&exec, graph, 0));
  for (const size_t only : {2, 0}) {
    const Fixture step = all.Only(only);
    runner.Load(step);
    ExpectCuda(cudaGraphLaunch(exec, stream));
    const Bf16s replayed = runner.out();
    Runner eager(step, AttentionRegime::kDecode);
    eager.Attend(false, nullptr);
    const Bf16s expected = eager.out();
    EXPECT_EQ(std::memcmp(replayed.data(), expected.data(), replayed.size() * 2), 0);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(Attend, RefusesACacheOfAnotherShape) {
  std::mt19937 random(1);
  const Fixture fixture({4, 2, 128, KvFormat::kBf16}, {{1, 5}}, random);
  DeviceArray<__nv_bfloat16> x(4096);
  DeviceArray<int32_t> image(4096);
  AttentionCall call = {{LimitsFor(fixture, AttentionRegime::kDecode, kSequences), 1, 1},
                        image.data(),
                        fixture.View(x.data(), x.data()),
                        x.data(),
                        x.data()};
  call.kv.kv_heads = 4;
  EXPECT_EQ(Attend(call, x.data(), nullptr).message(),
            "attention: found a cache of 4 heads and pages of 16 tokens, expected the plan's 2 and "
            "16");
  call.kv.kv_heads = 2;
  call.image = nullptr;
  EXPECT_EQ(Attend(call, x.data(), nullptr).message(),
            "attention image: found a null pointer, expected a device address");
}

}  // namespace
}  // namespace nibble
