// Runs on a GPU only: whole jobs over tiny models on the CPU and on a GPU.
#include "quant/pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/pipeline/hidden_states.h"
#include "quant/pipeline/perplexity.h"
#include "tests/fixtures/artifacts.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/fixtures/tiny_opt.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

constexpr Device kCpu = {};
constexpr Device kGpu = {.type = Device::Type::kCuda};

class CudaPipelineTest : public testing::TestWithParam<std::string> {
 protected:
  CudaPipelineTest() : model_(folder_.path() / "tiny") {
    EXPECT_TRUE((GetParam() == "opt" ? WriteTinyOpt({}, model_) : WriteTinyLlama({}, model_)).ok());
    std::ofstream corpus(folder_.path() / "c.txt");
    // Words that come again and again, so that inputs are correlated.
    for (int i = 0; i < 600; ++i) corpus << "word" << (i * i) % 37 << ' ';
    corpus.close();
    spec_.weights = WeightSpec{.format = Format::kE2M1, .group_size = 32};
    spec_.activations = ActivationSpec{.format = Format::kE4M3};
    spec_.lorc_rank = 4;
    spec_.calibration = {.corpus = folder_.path() / "c.txt", .windows = 8, .window_tokens = 64};
  }

  std::filesystem::path Quantize(const QuantizeSpec& spec, const Device& device,
                                 const std::string& name) {
    std::filesystem::path artifact = folder_.path() / name;
    const auto summary = QuantizeModel(
        spec, model_, artifact, [](const Progress&) { return absl::OkStatus(); }, device);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return artifact;
  }
  double PerplexityOf(const std::filesystem::path& model, Compute compute, const Device& device) {
    const auto windows = EvaluationWindows(model_, folder_.path() / "c.txt", 64).value();
    const auto decoder = Decoder::Load(model, compute, device).value();
    return EvaluatePerplexity(*decoder, windows).value().perplexity;
  }

  TempFolder folder_;
  std::filesystem::path model_;
  QuantizeSpec spec_;
};

// Of f32 sums of at most 128 terms, in another order, through 4 layers.
constexpr double kSameArithmetic = 1e-4;
// E4M3 activations near a midpoint fall to either side: 2^-4 of few values in a sum of many.
constexpr double kRoundedActivations = 5e-3;

TEST_P(CudaPipelineTest, TheModelItselfHasThePerplexityOfTheCpu) {
  const double cpu = PerplexityOf(model_, Compute::kF32, kCpu);
  EXPECT_NEAR(PerplexityOf(model_, Compute::kF32, kGpu), cpu, kSameArithmetic * cpu);
  // bf16 keeps 8 bits of every hidden state.
  EXPECT_NEAR(PerplexityOf(model_, Compute::kBf16, kGpu), cpu, 0.02 * cpu);
}

TEST_P(CudaPipelineTest, AnArtifactOfTheCpuEvaluatesOnTheGpu) {
  for (const Format format : {Format::kE4M3, Format::kE5M2, Format::kInt8}) {
    QuantizeSpec spec = spec_;
    spec.activations = ActivationSpec{format, format == Format::kInt8};
    const std::filesystem::path artifact =
        Quantize(spec, kCpu, std::string("cpu-") + std::string(FormatName(format)));
    const double cpu = PerplexityOf(artifact, Compute::kF32, kCpu);
    EXPECT_NEAR(PerplexityOf(artifact, Compute::kF32, kGpu), cpu, kRoundedActivations * cpu);
  }
}

TEST_P(CudaPipelineTest, TheGpusArtifactIsAsGoodAsTheCpus) {
  for (const bool act_order : {true, false}) {
    QuantizeSpec spec = spec_;
    spec.gptq.act_order = act_order;
    const auto cpu = Quantize(spec, kCpu, act_order ? "cpu-act" : "cpu-natural");
    const auto gpu = Quantize(spec, kGpu, act_order ? "gpu-act" : "gpu-natural");
    const double expected = PerplexityOf(cpu, Compute::kF32, kCpu);
    EXPECT_NEAR(PerplexityOf(gpu, Compute::kF32, kCpu), expected, 0.02 * expected);
    const auto error = [](const std::filesystem::path& artifact) {
      return ReadJsonFile(artifact / "report.json").value()["mean_output_error"].get<double>();
    };
    EXPECT_NEAR(error(gpu), error(cpu), 0.02 * error(cpu));
    const Json report = ReadJsonFile(gpu / "report.json").value();
    EXPECT_GT(report["layers"][0]["peak_device_bytes"].get<int64_t>(), 0);
  }
}

TEST_P(CudaPipelineTest, TheSameJobGivesTheSameBytes) {
  spec_.compute = Compute::kBf16;
  const Json first = ArtifactContent(Quantize(spec_, kGpu, "first"));
  EXPECT_EQ(ArtifactContent(Quantize(spec_, kGpu, "second")), first);
}

TEST_P(CudaPipelineTest, Bf16CostsLittle) {
  const double f32 = PerplexityOf(Quantize(spec_, kGpu, "f32"), Compute::kF32, kGpu);
  spec_.compute = Compute::kBf16;
  EXPECT_NEAR(PerplexityOf(Quantize(spec_, kGpu, "bf16"), Compute::kBf16, kGpu), f32, 0.05 * f32);
}

// All of the device's memory, in ever smaller pieces.
std::vector<at::Tensor> TakeAllMemory() {
  c10::DeviceAllocator* const allocator = c10::getDeviceAllocator(at::kCUDA);
  allocator->emptyCache();
  std::vector<at::Tensor> taken;
  auto bytes = static_cast<int64_t>(allocator->getMemoryInfo(0).first);
  while (bytes >= 512) {
    try {
      taken.push_back(at::empty({bytes}, at::TensorOptions(at::kByte).device(at::kCUDA)));
    } catch (const c10::OutOfMemoryError&) {
      bytes /= 2;
    }
  }
  return taken;
}

TEST_P(CudaPipelineTest, NoDeviceMemoryIsResourceExhaustedAndLeavesNoArtifact) {
  const std::filesystem::path artifact = folder_.path() / "full";
  const auto run = [&] {
    return QuantizeModel(
        spec_, model_, artifact, [](const Progress&) { return absl::OkStatus(); }, kGpu);
  };
  std::vector<at::Tensor> taken = TakeAllMemory();
  const auto refused = run();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  EXPECT_FALSE(std::filesystem::exists(artifact));
  taken.clear();
  c10::getDeviceAllocator(at::kCUDA)->emptyCache();
  EXPECT_TRUE(run().ok());
}

TEST_P(CudaPipelineTest, ADeviceThatIsNotThereIsRefused) {
  const auto status = QuantizeModel(spec_, model_, folder_.path() / "none",
                                    [](const Progress&) { return absl::OkStatus(); },
                                    {.type = Device::Type::kCuda, .index = 99});
  EXPECT_EQ(status.status().code(), absl::StatusCode::kFailedPrecondition) << status.status();
}

INSTANTIATE_TEST_SUITE_P(Families, CudaPipelineTest, testing::Values("llama", "opt"),
                         [](const auto& info) { return info.param; });

TEST(CudaHiddenStates, EveryPlaceGivesBackWhatWasWritten) {
  const TempFolder folder;
  const at::TensorOptions options = at::TensorOptions(at::kBFloat16).device(at::kCUDA);
  const at::Tensor rows = at::randn({6, 8}, options);
  const std::pair<StatesPlace, StatesBudget> cases[] = {
      {StatesPlace::kDevice, {.device = 96, .pinned_host = 0}},
      {StatesPlace::kPinnedHost, {.device = 95, .pinned_host = 128}},
      {StatesPlace::kFile, {.device = 95, .pinned_host = 127}}};
  for (const auto& [place, budget] : cases) {
    auto states = HiddenStates::Make(6, 8, options, budget, folder.path());
    ASSERT_TRUE(states.ok()) << states.status();
    EXPECT_EQ(states->place(), place);
    states->Write(0, rows.narrow(0, 0, 4));
    states->Write(4, rows.narrow(0, 4, 2));
    EXPECT_TRUE(states->Read(1, 5).equal(rows.narrow(0, 1, 5))) << StatesPlaceName(place);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace nibble
