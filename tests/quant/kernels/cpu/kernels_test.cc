// The CPU's functions of the forward against their definitions in double precision.
#include "quant/kernels/kernels.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace nibble {
namespace {

// f32 sums of some hundred products of order one.
constexpr double kTolerance = 2e-5;

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed));
}

double Difference(const at::Tensor& found, const at::Tensor& expected) {
  return (found.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
}

TEST(Normalize, IsRmsNormOrLayerNorm) {
  const at::Tensor x = 3 * Random({5, 48}, 1) + 1;
  NormWeights norm{.gain = Random({48}, 2), .bias = {}, .eps = 1e-3};
  const at::Tensor wide = x.to(at::kDouble);
  const at::Tensor rms = (wide.square().mean(-1, true) + 1e-3).sqrt();
  EXPECT_LT(Difference(Normalize(norm, x), wide / rms * norm.gain), kTolerance);

  norm.bias = Random({48}, 3);
  const at::Tensor mean = wide.mean(-1, true);
  const at::Tensor deviation = ((wide - mean).square().mean(-1, true) + 1e-3).sqrt();
  EXPECT_LT(Difference(Normalize(norm, x), (wide - mean) / deviation * norm.gain + norm.bias),
            kTolerance);
}

TEST(NormalizeAndRound, LetsTheRmsCancel) {
  const NormWeights norm{.gain = Random({64}, 4), .bias = {}, .eps = 1e-5};
  const ActivationSpec e4m3{.format = Format::kE4M3};
  const at::Tensor x = Random({7, 64}, 5);
  const at::Tensor rounded = NormalizeAndRound(norm, e4m3, x).TrueValues();
  // Every value is a code of E4M3 times amax|x g| / (448 rms).
  const at::Tensor scaled = (x * norm.gain).to(at::kDouble);
  const at::Tensor scale = scaled.abs().amax(-1, true) / 448;
  const at::Tensor rms = (x.to(at::kDouble).square().mean(-1, true) + 1e-5).sqrt();
  const at::Tensor codes = rounded.to(at::kDouble) * rms / scale;
  const at::Tensor nearest = codes.to(at::kFloat).to(at::kFloat8_e4m3fn).to(at::kDouble);
  EXPECT_LT(((codes - nearest).abs() / (nearest.abs() + 1e-3)).max().item<double>(), 1e-5);
  EXPECT_NEAR(codes.abs().max().item<double>(), 448, 1e-3);
  // Half a step of 3 mantissa bits, or of the smallest subnormal.
  const at::Tensor exact = scaled / scale;
  EXPECT_LE(((codes - exact).abs() - exact.abs() / 16).max().item<double>(), 1.0 / 1024 + 1e-4);
}

TEST(Linear, AddsBiasAndLowRankFactors) {
  LinearWeights weights{Random({12, 40}, 6), Random({12}, 7), Random({12, 3}, 8),
                        Random({3, 40}, 9), nullptr};
  const at::Tensor x = Random({5, 40}, 10);
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const at::Tensor low = wide(x).mm(wide(weights.lorc_b).t()).mm(wide(weights.lorc_a).t());
  const at::Tensor plain = wide(x).mm(wide(weights.weight).t());
  EXPECT_LT(Difference(Linear(weights, x), plain + low + weights.bias), 20 * kTolerance);
  weights.bias.reset();
  weights.lorc_a.reset();
  EXPECT_LT(Difference(Linear(weights, x), plain), kTolerance);
}

TEST(ApplyRotary, TurnsPairsHalfAHeadApart) {
  at::Tensor x = Random({3, 2, 8}, 11);
  const at::Tensor before = x.clone();
  const at::Tensor angle = Random({3, 4}, 12);
  ApplyRotary(x, angle.cos(), angle.sin());
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 4; ++i) {
        const double a = angle[t][i].item<double>();
        const double low = before[t][h][i].item<double>();
        const double high = before[t][h][i + 4].item<double>();
        EXPECT_NEAR(x[t][h][i].item<double>(), low * std::cos(a) - high * std::sin(a), 1e-6);
        EXPECT_NEAR(x[t][h][i + 4].item<double>(), high * std::cos(a) + low * std::sin(a), 1e-6);
      }
    }
  }
}

// Softmax over the keys up to the query's own position, one head at a time.
at::Tensor Reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t tokens = q.size(0), heads = q.size(1), width = q.size(2);
  const int64_t share = heads / k.size(1);
  at::Tensor out = at::zeros({tokens, heads, width}, at::kDouble);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      const at::Tensor keys = k.select(1, h / share).narrow(0, 0, t + 1).to(at::kDouble);
      const at::Tensor values = v.select(1, h / share).narrow(0, 0, t + 1).to(at::kDouble);
      const at::Tensor score =
          keys.mv(q[t][h].to(at::kDouble)) / std::sqrt(static_cast<double>(width));
      out[t][h].copy_(at::softmax(score, 0).matmul(values));
    }
  }
  return out;
}

TEST(Attention, IsCausalAndSharesHeadsOfKeys) {
  const at::Tensor q = Random({9, 6, 16}, 13);
  const at::Tensor k = Random({9, 2, 16}, 14);
  const at::Tensor v = Random({9, 2, 16}, 15);
  const Segment whole{.first_row = 0, .length = 9, .position = 0, .blocks = {}};
  EXPECT_LT(Difference(Attention(q, k, v, {whole}, nullptr), Reference(q, k, v)), kTolerance);
}

TEST(Attention, HoldsMoreHeadsAndChannelsThanATile) {
  for (const auto& [heads, kv_heads, channels] :
       {std::array<int64_t, 3>{10, 1, 128}, {22, 2, 100}, {3, 3, 80}, {1, 1, 2}}) {
    const at::Tensor q = Random({37, heads, channels}, 16);
    const at::Tensor k = Random({37, kv_heads, channels}, 17);
    const at::Tensor v = Random({37, kv_heads, channels}, 18);
    const Segment whole{.first_row = 0, .length = 37, .position = 0, .blocks = {}};
    EXPECT_LT(Difference(Attention(q, k, v, {whole}, nullptr), Reference(q, k, v)), kTolerance)
        << heads << " heads, " << channels << " channels";
  }
}

TEST(SiluMultiply, IsXOverOnePlusExpTimesUp) {
  const at::Tensor gate = 40 * Random({5, 37}, 50);
  const at::Tensor up = Random({5, 37}, 51);
  const at::Tensor wide = gate.to(at::kDouble);
  const at::Tensor expected = wide / (1 + (-wide).exp()) * up;
  // 4 roundings and the exponential's 2 units in the last place, relative.
  const at::Tensor error = (SiluMultiply(gate, up).to(at::kDouble) - expected).abs();
  EXPECT_LT((error - 8 * 6e-8 * expected.abs()).max().item<double>(), 1e-30);
}

TEST(Attention, PagesMixedSequencesAndChunksWithoutMixingThem) {
  // Two sequences in one pool, in chunks of different lengths, their blocks interleaved.
  const int64_t lengths[] = {43, 27};
  const std::vector<int32_t> blocks[] = {{5, 0, 3}, {2, 4}};
  at::Tensor q[2], k[2], v[2];
  for (uint64_t s = 0; s < 2; ++s) {
    q[s] = Random({lengths[s], 4, 8}, 20 + s);
    k[s] = Random({lengths[s], 2, 8}, 30 + s);
    v[s] = Random({lengths[s], 2, 8}, 40 + s);
  }
  KvBlocks cache = MakeKvBlocks(6, 2, 8);
  cache.k.fill_(NAN);
  cache.v.fill_(NAN);
  std::vector<at::Tensor> outputs[2];
  // {from, to} of both sequences in each step; the second starts later.
  const int64_t steps[][4] = {{0, 17, 0, 0}, {17, 18, 0, 11}, {18, 43, 11, 12}, {43, 43, 12, 27}};
  for (const auto& step : steps) {
    std::vector<at::Tensor> rows[3];
    std::vector<Segment> segments;
    int64_t first = 0;
    for (int s = 0; s < 2; ++s) {
      const int64_t from = step[2 * s], length = step[2 * s + 1] - from;
      if (length == 0) continue;
      segments.push_back({first, length, from, blocks[s]});
      first += length;
      const at::Tensor* all[] = {q, k, v};
      for (int i = 0; i < 3; ++i) rows[i].push_back(all[i][s].narrow(0, from, length));
    }
    const at::Tensor out =
        Attention(at::cat(rows[0]), at::cat(rows[1]), at::cat(rows[2]), segments, &cache);
    for (const Segment& segment : segments) {
      const int s = segment.blocks == blocks[0] ? 0 : 1;
      outputs[s].push_back(out.narrow(0, segment.first_row, segment.length));
    }
  }
  for (int s = 0; s < 2; ++s) {
    EXPECT_LT(Difference(at::cat(outputs[s]), Reference(q[s], k[s], v[s])), kTolerance);
  }
}

}  // namespace
}  // namespace nibble
