// Profiles of a tiny random LLaMA, against LibTorch in double over the whole batch at once.
#include "quant/pipeline/profile.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>

#include <fstream>
#include <map>

#include "quant/model/decoder/decoder.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kLayers = 3, kHidden = 64, kInner = 128, kWindow = 32, kWindows = 3;

class ProfileTest : public testing::Test {
 protected:
  ProfileTest() : model_(folder_.path() / "tiny") {
    EXPECT_TRUE(WriteTinyLlama({.layers = kLayers}, model_).ok());
    std::ofstream corpus(folder_.path() / "c.txt");
    for (int i = 0; i < 400; ++i) corpus << static_cast<char>('a' + i * i % 26);
    corpus.close();
    spec_.corpus = folder_.path() / "c.txt";
    spec_.windows = kWindows;
    spec_.window_tokens = kWindow;
    spec_.compute = Compute::kF32;
  }

  std::vector<ActivationProfile> Run() {
    std::vector<ActivationProfile> profiles;
    const absl::Status status =
        ProfileActivations(spec_, model_, [&](const ProfileProgress& progress) {
          if (progress.finished != nullptr) profiles.push_back(*progress.finished);
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    return profiles;
  }

  // The inputs [tokens, channels] of every layer, in double.
  std::vector<std::map<InputGroup, at::Tensor>> Inputs() const {
    const auto loader = DecoderLoader::Open(model_, Compute::kF32).value();
    const ModelConfig& config = loader->config();
    std::vector<std::map<InputGroup, at::Tensor>> inputs(kLayers);
    for (int64_t window = 0; window < kWindows; ++window) {
      Batch batch;
      for (int64_t i = 0; i < kWindow; ++i) {
        const int64_t at = window * kWindow + i;
        batch.tokens.push_back(static_cast<int32_t>('a' + at * at % 26));
      }
      batch.segments = {{.first_row = 0, .length = kWindow, .position = 0, .blocks = {}}};
      const Rotary rotary = MakeRotary(config, batch);
      at::Tensor hidden = Embed(config, loader->LoadEnds().value(), batch);
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        hidden = RunLayer(config, loader->LoadLayer(layer).value(), hidden, batch, rotary, nullptr,
                          [&](InputGroup input, const at::Tensor& x) {
                            at::Tensor& all = inputs[static_cast<size_t>(layer)][input];
                            const at::Tensor more = x.to(at::kDouble);
                            all = all.defined() ? at::cat({all, more}) : more;
                          });
      }
    }
    return inputs;
  }

  TempFolder folder_;
  std::filesystem::path model_;
  ProfileSpec spec_;
};

TEST_F(ProfileTest, FiguresAreThoseOfTheValues) {
  const c10::InferenceMode inference;
  const auto inputs = Inputs();
  const std::vector<ActivationProfile> profiles = Run();
  ASSERT_EQ(profiles.size(), static_cast<size_t>(4 * kLayers));
  for (const ActivationProfile& profile : profiles) {
    SCOPED_TRACE(testing::Message() << profile.layer << " " << InputName(profile.input));
    const at::Tensor x = inputs[static_cast<size_t>(profile.layer)].at(profile.input);
    EXPECT_EQ(profile.tokens, kWindow * kWindows);
    EXPECT_EQ(profile.channels, profile.input == InputGroup::kMlpOut ? kInner : kHidden);
    EXPECT_EQ(profile.min, x.min().item<double>());
    EXPECT_EQ(profile.max, x.max().item<double>());
    const double mean = x.mean().item<double>();
    const at::Tensor d = x - mean;
    const double m2 = d.pow(2).sum().item<double>();
    const double n = static_cast<double>(x.numel());
    // Sums of 12288 doubles: 12288 * 2^-53 = 1.4e-12 of the sum of magnitudes.
    const double deviation = std::sqrt(m2 / n);
    EXPECT_NEAR(profile.moments.mean, mean, 2e-12 * deviation);
    EXPECT_NEAR(profile.moments.StandardDeviation(), deviation, 1e-11 * deviation);
    const double kurtosis = n * d.pow(4).sum().item<double>() / (m2 * m2);
    EXPECT_NEAR(profile.moments.Kurtosis(), kurtosis, 1e-11 * kurtosis);
    const at::Tensor p = at::tensor(spec_.probabilities, at::kDouble);
    const at::Tensor quantiles = at::quantile(x.flatten(), p);
    const at::Tensor ranges = at::quantile(x.amax(1) - x.amin(1), p);
    ASSERT_EQ(profile.quantiles.size(), 11u);
    for (int64_t i = 0; i < 11; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_NEAR(profile.quantiles[at], quantiles[i].item<double>(), 1e-12 * deviation);
      EXPECT_NEAR(profile.token_range_quantiles[at], ranges[i].item<double>(), 1e-12 * deviation);
    }
    const at::Tensor counts =
        at::histc(x.flatten(), 256, x.min().item<double>(), x.max().item<double>());
    ASSERT_EQ(profile.histogram.size(), 256u);
    for (int64_t bin = 0; bin < 256; ++bin) {
      EXPECT_EQ(profile.histogram[static_cast<size_t>(bin)], counts[bin].item<double>()) << bin;
    }
  }
}

TEST_F(ProfileTest, AnInputNamesTheLinearsThatShareIt) {
  spec_.layers = {1};
  const auto profiles = Run();
  ASSERT_EQ(profiles.size(), 4u);
  const std::string layer = "model.layers.1.";
  EXPECT_THAT(profiles[0].linears,
              ElementsAre(layer + "self_attn.q_proj", layer + "self_attn.k_proj",
                          layer + "self_attn.v_proj"));
  EXPECT_THAT(profiles[1].linears, ElementsAre(layer + "self_attn.o_proj"));
  EXPECT_THAT(profiles[2].linears, ElementsAre(layer + "mlp.gate_proj", layer + "mlp.up_proj"));
  EXPECT_THAT(profiles[3].linears, ElementsAre(layer + "mlp.down_proj"));
}

TEST_F(ProfileTest, OnlyChosenLayersAndInputsAreProfiledAndTheSame) {
  const auto all = Run();
  spec_.layers = {1};
  spec_.inputs = {InputGroup::kMlpOut};
  std::vector<int64_t> layers;
  ASSERT_TRUE(ProfileActivations(spec_, model_, [&](const ProfileProgress& progress) {
                layers.push_back(progress.layers);
                return absl::OkStatus();
              }).ok());
  EXPECT_THAT(layers, ::testing::Each(2));  // nothing after the last one that is wanted
  const auto some = Run();
  ASSERT_EQ(some.size(), 1u);
  EXPECT_EQ(some[0].layer, 1);
  EXPECT_EQ(some[0].input, InputGroup::kMlpOut);
  EXPECT_EQ(some[0].quantiles, all[7].quantiles);
  EXPECT_EQ(some[0].histogram, all[7].histogram);
}

TEST_F(ProfileTest, PlacementsAreOfTheChosenToken) {
  const c10::InferenceMode inference;
  constexpr int64_t kToken = kWindow + 5;  // of the second window
  spec_.placement_token = kToken;
  spec_.placement_formats = {{Format::kInt8, true}, {Format::kE4M3}};
  const auto inputs = Inputs();
  for (const ActivationProfile& profile : Run()) {
    const at::Tensor x = inputs[static_cast<size_t>(profile.layer)].at(profile.input)[kToken];
    ASSERT_EQ(profile.placements.size(), 2u);
    for (const ValuePlacement& placement : profile.placements) {
      ASSERT_EQ(placement.values.size(), static_cast<size_t>(profile.channels));
      for (int64_t i = 0; i < profile.channels; ++i) {
        EXPECT_EQ(placement.values[static_cast<size_t>(i)], x[i].item<float>());
      }
    }
    EXPECT_FLOAT_EQ(profile.placements[1].scale.scale, x.abs().max().item<float>() / 448);
  }
}

TEST_F(ProfileTest, AStopAtAnyMomentIsTheCallersStatus) {
  spec_.probabilities = {0.5};
  int calls = 0;
  ASSERT_TRUE(ProfileActivations(spec_, model_, [&](const ProfileProgress&) {
                ++calls;
                return absl::OkStatus();
              }).ok());
  // The start, the end; in each layer every window twice, and four profiles.
  EXPECT_EQ(calls, 2 + kLayers * (2 * kWindows + 4));
  for (int stop = 0; stop < calls; ++stop) {
    int call = 0;
    const absl::Status stopped = ProfileActivations(spec_, model_, [&](const ProfileProgress&) {
      return call++ == stop ? absl::CancelledError("enough") : absl::OkStatus();
    });
    EXPECT_EQ(stopped, absl::CancelledError("enough")) << stop;
    EXPECT_EQ(call, stop + 1);
  }
}

TEST_F(ProfileTest, WhatCannotBeIsRefusedByField) {
  const auto refuse = [&](const std::function<void(ProfileSpec&)>& change,
                          const std::string& words) {
    ProfileSpec spec = spec_;
    change(spec);
    const absl::Status status =
        ProfileActivations(spec, model_, [](const ProfileProgress&) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr(words));
  };
  refuse([](auto& s) { s.layers = {0, kLayers}; }, "layers: found 3, expected 0 to 2");
  refuse([](auto& s) { s.windows = 0; }, "windows: found 0");
  refuse([](auto& s) { s.windows = 400; }, "windows: found text for 12");
  refuse([](auto& s) { s.window_tokens = 129; }, "window: found 129, expected 2 to the model's");
  refuse([](auto& s) { s.histogram_bins = 4097; }, "histogram_bins: found 4097");
  refuse([](auto& s) { s.probabilities = {0.5, 1.5}; }, "quantiles: found 1.5");
  refuse([](auto& s) { s.probabilities.assign(65, 0.5); }, "quantiles: found 65");
  refuse([](auto& s) { s.probabilities = {NAN}; }, "quantiles: found nan");
  refuse([](auto& s) { s.outlier_ratio = 1; }, "outlier_ratio: found 1");
  refuse([](auto& s) { s.outlier_channels = 1025; }, "outlier_channels: found 1025");
  refuse([](auto& s) { s.placement_token = kWindow * kWindows; }, "placement_token: found 96");
}

TEST(PlaceValuesTest, HandComputedSteps) {
  // INT8 asymmetric over -1 .. 4.1: S = 5.1 / 255 = 0.02, the code of 0 is 50.
  const std::vector<float> values = {-1, 0, 0.031f, 4.1f};
  const ValuePlacement integer = PlaceValues({Format::kInt8, true}, values);
  EXPECT_FLOAT_EQ(integer.scale.scale, 0.02f);
  EXPECT_EQ(integer.scale.zero, 50);
  EXPECT_THAT(integer.rounded, ElementsAre(::testing::FloatEq(-1), 0, ::testing::FloatEq(0.04f),
                                           ::testing::FloatEq(4.1f)));
  // Only the third errs, by 0.009.
  EXPECT_NEAR(integer.mean_squared_error, 0.009 * 0.009 / 4, 1e-8);
  EXPECT_NEAR(integer.relative_error, 0.009 / std::sqrt(1 + 0.031 * 0.031 + 4.1 * 4.1), 1e-6);

  // E4M3 with S = 1: between 256 and 288 steps are 32, so 270 is 256.
  const ValuePlacement real = PlaceValues({Format::kE4M3}, std::vector<float>{448, 270, -1.0625f});
  EXPECT_EQ(real.scale.scale, 1);
  EXPECT_EQ(real.scale.zero, 0);
  EXPECT_THAT(real.rounded, ElementsAre(448, 256, -1));  // a tie goes to even
  EXPECT_DOUBLE_EQ(real.mean_squared_error, (14 * 14 + 0.0625 * 0.0625) / 3);
}

TEST(PlaceValuesTest, ZerosHaveNoError) {
  for (const ActivationSpec& format :
       {ActivationSpec{Format::kInt8, true}, ActivationSpec{Format::kE5M2}}) {
    const ValuePlacement placement = PlaceValues(format, std::vector<float>{0, 0});
    EXPECT_THAT(placement.rounded, ElementsAre(0, 0));
    EXPECT_EQ(placement.relative_error, 0);
  }
}

}  // namespace
}  // namespace nibble
