// Runs on a GPU only: every cell of the method's matrix, made on the CPU and evaluated on both.
#include "tests/fixtures/matrix.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <vector>

#include "quant/model/cuda/cuda_decoder.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

constexpr Device kCpu = {};
constexpr Device kGpu = {.type = Device::Type::kCuda};
constexpr int64_t kWindow = 48;
constexpr int64_t kVocab = 256;

// Whole multiples of 16, which the fused kernels want; groups of 128 and more are short.
constexpr MatrixShape kShape = {.hidden = 192, .heads = 3, .kv_heads = 1, .intermediate = 208};

// f32 sums of at most 208 terms in another order, through one layer.
constexpr double kSameArithmetic = 1e-5;

// Sums that differ in their last bits let an activation near a midpoint fall to the other side now
// and then, and its row with it. On the CPU, weights changed by 1e-6 moved logits by at most 0.19
// of what rounding the activations moves them by, which a forward that rounds wrongly or not at all
// would be off by.
constexpr double kRoundedElsewhere = 0.25;

// Two roundings that have nothing to do with each other differ by sqrt(2) of what either does.
constexpr double kRoundedAnew = 1.5;

// bf16 keeps 8 bits of every hidden state: 2^-9 in each of some ten roundings.
constexpr double kBf16 = 0.02;

double RelativeError(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).norm() / expected.norm()).item<double>();
}

std::vector<int64_t> AllRows() {
  std::vector<int64_t> rows(kWindow);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

double NegativeLogLikelihood(const at::Tensor& logits, const std::vector<int32_t>& tokens) {
  const int64_t targets = kWindow - 1;
  return at::nll_loss(at::log_softmax(logits.narrow(0, 0, targets), 1),
                      at::tensor(tokens, at::kInt).to(at::kLong).narrow(0, 1, targets))
      .item<double>();
}

class CudaMatrixTest : public testing::TestWithParam<const char*> {
 protected:
  CudaMatrixTest() : checkpoint_(folder_.path() / "tiny"), artifact_(folder_.path() / "out") {
    at::set_num_threads(1);  // waking others would take most of the time
    const absl::Status written = WriteMatrixModel(GetParam(), kShape, checkpoint_);
    EXPECT_TRUE(written.ok()) << written;
    calibration_ = WriteMatrixCorpus(folder_.path());
    for (int32_t i = 0; i < kWindow; ++i) batch_.tokens.push_back(i * 5 % kVocab);
    batch_.segments = {{.length = kWindow}};
  }

  // Runs a job on the CPU and looks at what it made, which it removes.
  void Check(const QuantizeSpec& spec) {
    SCOPED_TRACE(Describe(spec));
    const c10::InferenceMode inference;
    const auto summary = QuantizeModel(
        spec, checkpoint_, artifact_, [](const Progress&) { return absl::OkStatus(); }, kCpu);
    ASSERT_TRUE(summary.ok()) << summary.status();
    const at::Tensor expected = Logits(Compute::kF32, kCpu);
    const double rounding = RelativeError(UnroundedLogits(), expected);
    CheckF32(expected, kSameArithmetic + kRoundedElsewhere * rounding);
    CheckBf16(expected, kBf16 + kRoundedAnew * rounding);
    std::filesystem::remove_all(artifact_);
  }

  CalibrationSpec calibration_;

 private:
  void CheckF32(const at::Tensor& expected, double tolerance) {
    const at::Tensor found = Logits(Compute::kF32, kGpu);
    EXPECT_LT(RelativeError(found, expected), tolerance);
    // A likelihood is off by about as much as its logit.
    const double size = std::sqrt(expected.square().mean().item<double>());
    EXPECT_NEAR(NegativeLogLikelihood(found, batch_.tokens),
                NegativeLogLikelihood(expected, batch_.tokens), 2 * tolerance * size);
  }

  // The forward over tensors, and the one that is served, which is as near.
  void CheckBf16(const at::Tensor& expected, double tolerance) {
    const double over_tensors = RelativeError(Logits(Compute::kBf16, kGpu), expected);
    EXPECT_LT(over_tensors, tolerance);
    EXPECT_LT(RelativeError(ServedLogits(), expected), 2 * over_tensors);
  }

  // Of the forward over tensors: [kWindow, kVocab], on the CPU.
  at::Tensor Logits(Compute compute, const Device& device) {
    const auto decoder = Decoder::Load(artifact_, compute, device);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    if (!decoder.ok()) return at::full({kWindow, kVocab}, std::nan(""));
    return (*decoder)->Logits((*decoder)->Forward(batch_, nullptr), AllRows()).cpu();
  }

  // On the CPU, of the artifact's weights without its rounding of activations.
  at::Tensor UnroundedLogits() {
    const auto loader = DecoderLoader::Open(artifact_, Compute::kF32).value();
    const DecoderEnds ends = loader->LoadEnds().value();
    DecoderLayer layer = loader->LoadLayer(0).value();
    for (LayerLinear& linear : layer.linears) linear.activation.reset();
    const ModelConfig& config = loader->config();
    const at::Tensor hidden = RunLayer(config, layer, Embed(config, ends, batch_), batch_,
                                       MakeRotary(config, batch_), nullptr);
    return nibble::Logits(config, ends, hidden, AllRows());
  }

  // Of the forward over fused kernels, where these have the format.
  at::Tensor ServedLogits() {
    at::Tensor logits = at::full({kWindow, kVocab}, std::nan(""));
    const auto decoder = CudaDecoder::Load(
        artifact_,
        {.device = kGpu, .kv_bytes = 1 << 20, .max_tokens = kWindow, .max_sequences = 1});
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    if (!decoder.ok()) return logits;
    const std::vector<int32_t> blocks = {0, 1, 2};
    std::vector<int32_t> drawn;
    const absl::Status run =
        (*decoder)->Run({{{.tokens = batch_.tokens, .blocks = blocks, .sample = true}}}, drawn);
    EXPECT_TRUE(run.ok()) << run;
    std::vector<CudaDecoder::Row> rows;
    for (int64_t i = 0; i < kWindow; ++i) rows.push_back({0, i});
    std::vector<float> values;
    const absl::Status read = (*decoder)->Logits(rows, values);
    EXPECT_TRUE(read.ok()) << read;
    if (!read.ok()) return logits;
    logits.copy_(at::from_blob(values.data(), {kWindow, kVocab}, at::kFloat));
    return logits;
  }

  TempFolder folder_;
  std::filesystem::path checkpoint_;
  std::filesystem::path artifact_;
  Batch batch_;
};

TEST_P(CudaMatrixTest, RoundToNearest) {
  for (const QuantizeSpec& spec : RoundToNearestCells(GetParam())) Check(spec);
}

TEST_P(CudaMatrixTest, GptqAndLorc) {
  for (const QuantizeSpec& spec : GptqAndLorcCells(calibration_)) Check(spec);
}

TEST_P(CudaMatrixTest, ScaleSearchAndIterations) {
  for (const QuantizeSpec& spec : ScaleSearchCells(calibration_)) Check(spec);
}

TEST_P(CudaMatrixTest, ActivationsAlone) {
  for (const QuantizeSpec& spec : ActivationCells()) Check(spec);
}

TEST_P(CudaMatrixTest, ExclusionByPattern) { Check(ExclusionCell(GetParam(), calibration_)); }

INSTANTIATE_TEST_SUITE_P(Families, CudaMatrixTest, testing::ValuesIn(kMatrixFamilies),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
