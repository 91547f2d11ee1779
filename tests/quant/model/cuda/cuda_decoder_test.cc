// Runs on a GPU only: the forward over fused kernels against the forward over tensors.
#include "quant/model/cuda/cuda_decoder.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/fixtures/tiny_opt.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

constexpr Device kGpu = {.type = Device::Type::kCuda};
constexpr int kSeed = 20261126;
constexpr int32_t kBlockSize = 16;

std::vector<int32_t> RandomTokens(std::mt19937& random, size_t count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 256);
  return tokens;
}

std::vector<int32_t> Blocks(int32_t first, int64_t positions) {
  std::vector<int32_t> blocks((positions + kBlockSize - 1) / kBlockSize);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

double RelativeError(const std::vector<float>& found, const std::vector<float>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double error = 0;
  double size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += std::pow(found[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(error / size);
}

// One sequence in blocks of its own, run step by step.
struct Stream {
  std::vector<int32_t> tokens;
  int64_t done = 0;
  std::vector<int32_t> blocks;

  CudaSequence Next(int64_t count) const {
    return {.tokens = absl::MakeConstSpan(tokens).subspan(done, count),
            .position = done,
            .blocks = blocks,
            .sample = true};
  }
};

class CudaDecoderTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam().starts_with("opt")) {
      ASSERT_TRUE(WriteTinyOpt({.hidden = 256,
                                .heads = 4,
                                .ffn = 512,
                                .context = 512,
                                .pre_norm = GetParam() != "opt post-norm"},
                               model_)
                      .ok());
    } else {
      ASSERT_TRUE(
          WriteTinyLlama(
              {.hidden = 256, .heads = 4, .kv_heads = 2, .intermediate = 512, .context = 512},
              model_)
              .ok());
    }
    QuantizeSpec spec;
    spec.method = Method::kRtn;
    spec.weights = WeightSpec{.format = Format::kE2M1, .group_size = 64};
    spec.activations = ActivationSpec{.format = Format::kE4M3};
    spec.lorc_rank = 4;
    if (GetParam() == "llama none") spec.weights->constraint = ScaleConstraint::kNone;
    if (GetParam() == "llama int8") {
      spec.weights = WeightSpec{
          .format = Format::kInt8, .group_size = 64, .constraint = ScaleConstraint::kNone};
      spec.activations = ActivationSpec{.format = Format::kInt8, .asymmetric = true};
    }
    if (GetParam() == "llama excluded") spec.exclude = {"*.k_proj"};
    artifact_ = folder_.path() / "artifact";
    const auto summary = QuantizeModel(spec, model_, artifact_,
                                       [](const Progress&) { return absl::OkStatus(); }, {});
    ASSERT_TRUE(summary.ok()) << summary.status();
  }

  std::unique_ptr<CudaDecoder> Load(bool e4m3_cache = false) {
    auto decoder = CudaDecoder::Load(artifact_, {.device = kGpu,
                                                 .e4m3_cache = e4m3_cache,
                                                 .kv_bytes = 64 << 20,
                                                 .max_tokens = 512,
                                                 .max_sequences = 80});
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    return *std::move(decoder);
  }

  // Of the forward over tensors: [tokens, vocab].
  std::vector<float> OverTensors(const std::vector<int32_t>& tokens, Compute compute,
                                 const Device& device) {
    const auto decoder = Decoder::Load(artifact_, compute, device).value();
    const auto count = static_cast<int64_t>(tokens.size());
    const Batch batch = {tokens, {{.length = count}}};
    std::vector<int64_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    const at::Tensor logits =
        decoder->Logits(decoder->Forward(batch, nullptr), rows).cpu().contiguous();
    return {logits.data_ptr<float>(), logits.data_ptr<float>() + logits.numel()};
  }

  // The last of the logits of `tokens` are as near to those in f32 on the CPU as the forward over
  // tensors comes in bf16 on the GPU: both round hidden states to bf16, and then activations near a
  // midpoint of E4M3 to the other side. `cache_error`: of keys and values, beside.
  void ExpectNear(const std::vector<float>& found, const std::vector<int32_t>& tokens,
                  double cache_error = 0) {
    const auto last = [&](const std::vector<float>& all) {
      return std::vector<float>(all.end() - static_cast<int64_t>(found.size()), all.end());
    };
    const std::vector<float> exact = OverTensors(tokens, Compute::kF32, {});
    const std::vector<float> bf16 = OverTensors(tokens, Compute::kBf16, kGpu);
    // Over all tokens, which one row's chance does not sway.
    const double expected = RelativeError(bf16, exact);
    EXPECT_LT(RelativeError(found, last(exact)), 1.5 * std::hypot(expected, cache_error));
  }

  static std::vector<float> LogitsOfLast(CudaDecoder& decoder, size_t sequence, int64_t tokens) {
    std::vector<float> logits;
    EXPECT_TRUE(decoder.Logits({{{sequence, tokens - 1}}}, logits).ok());
    return logits;
  }

  TempFolder folder_;
  std::filesystem::path model_ = folder_.path() / "tiny";
  std::filesystem::path artifact_;
};

TEST_P(CudaDecoderTest, GivesTheLogitsOfTheForwardOverTensors) {
  std::mt19937 random(kSeed);
  const std::vector<int32_t> tokens = RandomTokens(random, 200);
  const std::unique_ptr<CudaDecoder> decoder = Load();
  std::vector<int32_t> drawn;
  ASSERT_TRUE(
      decoder->Run({{{.tokens = tokens, .blocks = Blocks(0, 200), .sample = true}}}, drawn).ok());
  std::vector<CudaDecoder::Row> rows;
  for (int64_t i = 0; i < 200; ++i) rows.push_back({0, i});
  std::vector<float> logits;
  ASSERT_TRUE(decoder->Logits(rows, logits).ok());
  ExpectNear(logits, tokens);
  const std::vector<float> last(logits.end() - 256, logits.end());
  EXPECT_EQ(drawn[0], std::ranges::max_element(last) - last.begin());
}

TEST_P(CudaDecoderTest, DecodingThroughTheCacheGivesTheSame) {
  std::mt19937 random(kSeed + 1);
  Stream stream{RandomTokens(random, 150), 0, Blocks(7, 150)};
  for (const bool e4m3 : {false, true}) {
    SCOPED_TRACE(e4m3 ? "e4m3 cache" : "bf16 cache");
    const std::unique_ptr<CudaDecoder> decoder = Load(e4m3);
    std::vector<int32_t> drawn;
    std::vector<float> found;
    stream.done = 0;
    for (const int64_t chunk : {70, 1, 1, 50}) {
      ASSERT_TRUE(decoder->Run({{stream.Next(chunk)}}, drawn).ok());
      stream.done += chunk;
    }
    while (stream.done < 150) {
      ASSERT_TRUE(decoder->Run({{stream.Next(1)}}, drawn).ok());
      ++stream.done;
      const std::vector<float> row = LogitsOfLast(*decoder, 0, 1);
      found.insert(found.end(), row.begin(), row.end());
    }
    // E4M3 keeps 2^-4 of every key and value.
    ExpectNear(found, stream.tokens, e4m3 ? 0.0625 : 0);
  }
}

// Up to 64 sequences: the decode regime of every kernel.
TEST_P(CudaDecoderTest, ADecodingSequenceHasTheSameBitsInEveryBatch) {
  if (GetParam() == "llama int8" || GetParam() == "llama excluded") {
    // The true-value path multiplies by cuBLAS, whose sums depend on the batch: no promise.
    const auto [slow, all] = std::pair(Load()->facts().true_value_groups, Load()->facts().groups);
    EXPECT_GT(slow, 0);
    EXPECT_LE(slow, all);
    return;
  }
  std::mt19937 random(kSeed + 2);
  const std::unique_ptr<CudaDecoder> decoder = Load();
  EXPECT_EQ(decoder->facts().true_value_groups, 0);
  std::vector<Stream> streams;
  std::vector<int32_t> drawn;
  for (int i = 0; i < 64; ++i) {
    const auto length = static_cast<int64_t>(20 + random() % 200);
    streams.push_back({RandomTokens(random, length), 0, Blocks(i * 16, length)});
    ASSERT_TRUE(decoder->Run({{streams[i].Next(length - 1)}}, drawn).ok());
    streams[i].done = length - 1;
  }
  std::vector<float> alone;
  std::vector<int32_t> token_alone;
  for (const size_t batch : {1, 3, 9, 33, 64}) {
    std::vector<CudaSequence> sequences;
    for (size_t i = 0; i < batch; ++i) sequences.push_back(streams[batch - 1 - i].Next(1));
    ASSERT_TRUE(decoder->Run(sequences, drawn).ok());
    const std::vector<float> logits = LogitsOfLast(*decoder, batch - 1, 1);  // of stream 0
    if (batch == 1) {
      alone = logits;
      token_alone = drawn;
    }
    EXPECT_EQ(logits, alone) << batch;
    EXPECT_EQ(drawn.back(), token_alone[0]) << batch;
  }
}

TEST_P(CudaDecoderTest, MixedStepsAreThoseOfEachAlone) {
  std::mt19937 random(kSeed + 3);
  const std::unique_ptr<CudaDecoder> decoder = Load();
  Stream decoding{RandomTokens(random, 40), 0, Blocks(0, 40)};
  const Stream prompt{RandomTokens(random, 90), 0, Blocks(20, 90)};
  std::vector<int32_t> drawn;
  ASSERT_TRUE(decoder->Run({{decoding.Next(39)}}, drawn).ok());
  decoding.done = 39;
  ASSERT_TRUE(decoder->Run({{prompt.Next(90), decoding.Next(1)}}, drawn).ok());
  ExpectNear(LogitsOfLast(*decoder, 0, 90), prompt.tokens);
  ExpectNear(LogitsOfLast(*decoder, 1, 1), decoding.tokens);
}

TEST_P(CudaDecoderTest, RefusesStepsBeyondItsLimits) {
  const std::unique_ptr<CudaDecoder> decoder = Load();
  const std::vector<int32_t> tokens(513, 1);
  std::vector<int32_t> drawn;
  EXPECT_EQ(decoder->Run({{{.tokens = tokens, .blocks = Blocks(0, 513)}}}, drawn).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(decoder->Run({{CudaSequence{}}}, drawn).code(), absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaDecoderTest,
                         testing::Values("llama", "llama none", "llama int8", "llama excluded",
                                         "opt", "opt post-norm"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace_if(
                               name, [](char c) { return c == ' ' || c == '-'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace nibble
