// A turned model is the same function, in memory and as an artifact.
#include "quant/model/decoder/rotation.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <numeric>

#include "quant/model/checkpoint/json.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/fixtures/tiny_opt.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int64_t kTokens = 40;

fs::path Models() { return fs::path(NIBBLE_FIXTURES) / "models"; }

double RelativeDifference(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

Batch MakeBatch(int64_t vocab) {
  Batch batch;
  for (int64_t i = 0; i < kTokens; ++i) batch.tokens.push_back(static_cast<int32_t>(i * 5 % vocab));
  batch.segments = {{.first_row = 0, .length = kTokens, .position = 0, .blocks = {}}};
  return batch;
}

std::vector<int64_t> AllRows() {
  std::vector<int64_t> rows(kTokens);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// As the pipeline reads it.
at::Tensor LogitsOf(const DecoderLoader& loader) {
  const c10::InferenceMode inference;
  const ModelConfig& config = loader.config();
  const Batch batch = MakeBatch(config.vocab);
  const Rotary rotary = MakeRotary(config, batch);
  const DecoderEnds ends = loader.LoadEnds().value();
  at::Tensor hidden = Embed(config, ends, batch);
  for (int64_t i = 0; i < config.layers; ++i) {
    hidden = RunLayer(config, loader.LoadLayer(i).value(), hidden, batch, rotary, nullptr);
  }
  return Logits(config, ends, hidden, AllRows());
}

// As it is served.
at::Tensor LogitsOf(const fs::path& model) {
  const c10::InferenceMode inference;
  const auto decoder = Decoder::Load(model, Compute::kF32).value();
  const Batch batch = MakeBatch(decoder->config().vocab);
  return decoder->Logits(decoder->Forward(batch, nullptr), AllRows());
}

std::unique_ptr<DecoderLoader> Rotated(const fs::path& model, uint64_t seed,
                                       Compute compute = Compute::kF32) {
  auto loader = DecoderLoader::Open(model, compute).value();
  EXPECT_TRUE(loader->Rotate(seed).ok());
  return loader;
}

// `model` with its tensors and config changed.
void CopyChanged(const fs::path& model, const fs::path& copy, const Json& config,
                 const std::function<void(NamedTensor&)>& change) {
  fs::create_directories(copy);
  Json changed = ReadJsonFile(model / "config.json").value();
  changed.update(config);
  std::ofstream(copy / "config.json") << changed;
  const auto source = TensorSource::Open(model).value();
  std::vector<NamedTensor> tensors;
  for (const std::string& name : source->Names()) {
    const TensorView view = source->Find(name).value();
    tensors.push_back({name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}});
    change(tensors.back());
  }
  ASSERT_TRUE(WriteSafetensors(copy / "model.safetensors", tensors).ok());
}

void SetFirst(NamedTensor& tensor, float value) {
  ASSERT_EQ(tensor.dtype, DType::kF32);
  std::memcpy(tensor.bytes.data(), &value, sizeof(value));
}

TEST(RotationMatrixTest, IsOrthogonalAndOfItsSeed) {
  for (const Family family : {Family::kLlama, Family::kOpt}) {
    for (const int64_t n : {7, 20, 64, 96, 576}) {
      SCOPED_TRACE(n);
      const at::Tensor q = RotationMatrix(family, n, 3);
      EXPECT_LT((q.mm(q.t()) - at::eye(n, at::kDouble)).abs().max().item<double>(), 1e-12);
      EXPECT_TRUE(q.equal(RotationMatrix(family, n, 3)));
      EXPECT_GT((q - RotationMatrix(family, n, 4)).abs().max().item<double>(), 0.01);
      if (family == Family::kOpt) {
        EXPECT_LT((q.sum(1) - 1).abs().max().item<double>(), 1e-12);
      }
    }
  }
}

// Artifacts made elsewhere, or before, must be of the same Q.
TEST(RotationMatrixTest, StaysWhatItWas) {
  const at::Tensor even = RotationMatrix(Family::kLlama, 4, 7)[0] * 2;
  EXPECT_TRUE(even.equal(at::tensor({-1.0, -1.0, 1.0, -1.0}, at::kDouble))) << even;
  const at::Tensor odd = RotationMatrix(Family::kLlama, 3, 7)[0];
  const at::Tensor expected =
      at::tensor({-0.19205977675095842, -0.8030922308113827, 0.56405311005681824}, at::kDouble);
  EXPECT_LT((odd - expected).abs().max().item<double>(), 1e-12) << odd;
}

TEST(RotationMatrixTest, SpreadsAnOutlier) {
  for (const Family family : {Family::kLlama, Family::kOpt}) {
    const at::Tensor q = RotationMatrix(family, 576, 1);
    // Of a unit vector of one channel no more than a quarter stays in any.
    EXPECT_LT(q.abs().max().item<double>(), 0.25);
  }
}

class RotatedModelTest : public testing::TestWithParam<std::string> {};

TEST_P(RotatedModelTest, IsTheSameFunction) {
  const fs::path model = Models() / GetParam();
  const at::Tensor original = LogitsOf(*DecoderLoader::Open(model, Compute::kF32).value());
  for (const uint64_t seed : {0, 12345}) {
    const auto rotated = Rotated(model, seed);
    EXPECT_FALSE(rotated->config().tied_embeddings);
    EXPECT_LT(RelativeDifference(LogitsOf(*rotated), original), 1e-4) << seed;
  }
}

TEST_P(RotatedModelTest, WeightsAreTurnedFromTheStoredOnesAndRoundedOnce) {
  const fs::path model = Models() / GetParam();
  const DecoderLayer exact = Rotated(model, 1)->LoadLayer(1).value();
  const DecoderLayer rounded = Rotated(model, 1, Compute::kBf16)->LoadLayer(1).value();
  const DecoderLayer stored =
      DecoderLoader::Open(model, Compute::kF32).value()->LoadLayer(1).value();
  for (size_t i = 0; i < exact.linears.size(); ++i) {
    const at::Tensor& weight = exact.linears[i].weights.weight;
    EXPECT_TRUE(weight.to(at::kBFloat16).to(at::kFloat).equal(rounded.linears[i].weights.weight));
    EXPECT_GT(RelativeDifference(weight, stored.linears[i].weights.weight), 0.1);
  }
  EXPECT_TRUE(exact.attention_norm.gain.eq(1).all().item<bool>());
  EXPECT_TRUE(exact.mlp_norm.gain.eq(1).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Families, RotatedModelTest,
                         testing::Values("llama_mha", "llama_gqa_tied", "llama_mqa_bias",
                                         "llama_head_dim", "llama3_rope", "llama_head_dim_100",
                                         "opt_pre_norm", "opt_no_bias"),
                         [](const auto& info) { return info.param; });

class RotationTest : public testing::Test {
 protected:
  absl::Status Run(const QuantizeSpec& spec, const fs::path& model) {
    return QuantizeModel(spec, model, artifact_, [](const Progress&) { return absl::OkStatus(); })
        .status();
  }
  static QuantizeSpec ActivationsOnly() {
    QuantizeSpec spec;
    spec.activations = ActivationSpec{.format = Format::kInt8, .asymmetric = true};
    spec.rotate_seed = 9;
    return spec;
  }

  TempFolder folder_;
  const fs::path llama_ = folder_.path() / "llama";
  const fs::path opt_ = folder_.path() / "opt";
  const fs::path artifact_ = folder_.path() / "artifacts" / "out";
};

TEST_F(RotationTest, AnArtifactIsTheModelInBFloat16) {
  ASSERT_TRUE(WriteTinyLlama({.layers = 2}, llama_).ok());
  ASSERT_TRUE(WriteTinyOpt({.layers = 2}, opt_).ok());
  for (const fs::path& model : {llama_, opt_}) {
    SCOPED_TRACE(model);
    const at::Tensor original = LogitsOf(model);
    QuantizeSpec spec = ActivationsOnly();
    ASSERT_TRUE(Run(spec, model).ok());
    EXPECT_LT(RelativeDifference(LogitsOf(artifact_), original), 0.05);
    fs::remove_all(artifact_);
    // One linear's activations alone are rounded; the excluded linears are turned as well.
    spec.exclude = {"*.layers.0.*", "*.layers.1.self_attn.[qko]*", "*.layers.1.mlp.*",
                    "*.layers.1.fc?"};
    if (model == llama_) spec.exclude.pop_back();
    if (model == opt_) spec.exclude.erase(spec.exclude.begin() + 2);
    ASSERT_TRUE(Run(spec, model).ok());
    EXPECT_LT(RelativeDifference(LogitsOf(artifact_), original), 0.01);
    fs::remove_all(artifact_);
  }
}

TEST_F(RotationTest, TheArtifactSaysHowItWasMade) {
  ASSERT_TRUE(WriteTinyLlama({.layers = 1}, llama_).ok());
  ASSERT_TRUE(Run(ActivationsOnly(), llama_).ok());
  EXPECT_EQ(ReadJsonFile(artifact_ / "config.json").value()["tie_word_embeddings"], false);
  const Json spec = ReadJsonFile(artifact_ / "nibble.json").value()["spec"];
  EXPECT_EQ(spec["rotate"], true);
  EXPECT_EQ(spec["rotate_seed"], 9);
  EXPECT_TRUE(TensorSource::Open(artifact_).value()->Contains("lm_head.weight"));
}

TEST_F(RotationTest, AQuantizedModelStaysNearTheOriginal) {
  ASSERT_TRUE(WriteTinyLlama({.layers = 2}, llama_).ok());
  std::ofstream corpus(folder_.path() / "c.txt");
  for (int i = 0; i < 600; ++i) corpus << "word" << (i * i) % 37 << ' ';
  corpus.close();
  QuantizeSpec spec = ActivationsOnly();
  spec.weights = WeightSpec{.format = Format::kInt8, .group_size = 32};
  spec.calibration = {.corpus = folder_.path() / "c.txt", .windows = 8, .window_tokens = 64};
  ASSERT_TRUE(Run(spec, llama_).ok());
  EXPECT_LT(RelativeDifference(LogitsOf(artifact_), LogitsOf(llama_)), 0.1);
}

TEST_F(RotationTest, WhatIsNotExactIsRefused) {
  const auto refuse = [&](const fs::path& model, const std::string& words) {
    const absl::Status checked = CheckQuantizeSpec(ActivationsOnly(), model);
    EXPECT_EQ(checked.code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(checked.message(), HasSubstr(words));
    EXPECT_EQ(Run(ActivationsOnly(), model), checked);
  };
  refuse(Models() / "opt_post_norm_projected",
         "rotate: found do_layer_norm_before false, expected");
  const auto keep = [](NamedTensor&) {};
  CopyChanged(Models() / "opt_post_norm_projected", opt_, {{"do_layer_norm_before", true}}, keep);
  refuse(opt_, "rotate: found word_embed_proj_dim 16, expected hidden_size 32");

  const auto zero_gain = [](NamedTensor& tensor) {
    if (tensor.name == "model.decoder.final_layer_norm.weight") SetFirst(tensor, 0);
  };
  CopyChanged(Models() / "opt_pre_norm", opt_, Json::object(), zero_gain);
  refuse(opt_,
         "rotate: found a gain of 0 beside a bias in model.decoder.final_layer_norm, expected");
}

TEST_F(RotationTest, AGainOfZeroIsNoneOfTheLinearsBehind) {
  // Folded; and beside no bias.
  const auto zeros = [](NamedTensor& tensor) {
    if (tensor.name == "model.decoder.layers.0.final_layer_norm.weight") SetFirst(tensor, 0);
    if (tensor.name.starts_with("model.decoder.final_layer_norm.")) SetFirst(tensor, 0);
  };
  CopyChanged(Models() / "opt_pre_norm", opt_, Json::object(), zeros);
  const at::Tensor original = LogitsOf(*DecoderLoader::Open(opt_, Compute::kF32).value());
  EXPECT_LT(RelativeDifference(LogitsOf(*Rotated(opt_, 2)), original), 1e-4);
}

}  // namespace
}  // namespace nibble
