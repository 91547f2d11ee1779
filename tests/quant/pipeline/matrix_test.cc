// Every cell of the method's matrix, as whole jobs over tiny models: the artifact loads, its
// weights are values of the format under scales of the constraint, and it predicts.
#include "tests/fixtures/matrix.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "quant/base/strings.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

constexpr int64_t kWindow = 48;

// The value of a format nearest to x, from the formats' definition: multiples of a step that
// doubles with the magnitude, or integers.
double NearestValue(const WeightSpec& spec, double x) {
  struct Shape {
    int mantissa;
    int min_exponent;
    double max;
  };
  const auto shape = [&]() -> Shape {
    switch (spec.format) {
      case Format::kE2M1:
        return {1, 0, 6};
      case Format::kE3M0:
        return {0, -2, 16};
      case Format::kE4M3:
        return {3, -6, 448};
      case Format::kE5M2:
        return {2, -14, 57344};
      case Format::kInt4:
        return {0, 0, spec.asymmetric ? 15.0 : 7.0};
      case Format::kInt8:
        return {0, 0, spec.asymmetric ? 255.0 : 127.0};
    }
    return {};
  }();
  double step = 1;
  if (!IsInteger(spec.format)) {
    const int exponent = x == 0 ? shape.min_exponent : std::ilogb(x * (1 + 1e-6));
    step = std::ldexp(1.0, std::max(exponent, shape.min_exponent) - shape.mantissa);
  }
  const double nearest = std::nearbyint(x / step) * step;
  return std::abs(nearest) <= shape.max ? nearest : std::nan("");
}

// The scale of every group, [rows, groups], from the artifact's tensors and DESIGN 3's words.
std::vector<float> StoredScales(const TensorSource& tensors, const std::string& name,
                                ScaleConstraint constraint, int64_t rows, int64_t groups) {
  const auto bytes = [&](const char* suffix) {
    return tensors.Find(StrCat(name, suffix)).value().bytes;
  };
  std::vector<float> scales(rows * groups);
  if (constraint == ScaleConstraint::kNone) {
    std::memcpy(scales.data(), bytes(".weight_scale").data(), 4 * scales.size());
  } else if (constraint == ScaleConstraint::kM1) {
    const absl::Span<const uint8_t> exponents = bytes(".weight_scale");
    for (size_t i = 0; i < scales.size(); ++i) {
      scales[i] = std::ldexp(1.0f, static_cast<int8_t>(exponents[i]));
    }
  } else {
    std::vector<float> row_scales(rows);
    std::memcpy(row_scales.data(), bytes(".weight_row_scale").data(), 4 * row_scales.size());
    const absl::Span<const uint8_t> pairs = bytes(".weight_k");
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t pair = pairs[r * ((groups + 1) / 2) + g / 2];
        const int k = g % 2 == 0 ? pair & 15 : pair >> 4;
        EXPECT_LE(k, 11);
        scales[r * groups + g] = std::ldexp(row_scales[r], -k);
      }
    }
  }
  return scales;
}

double NegativeLogLikelihood(const at::Tensor& logits, const Batch& batch) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const at::Tensor targets =
      at::tensor(batch.tokens, at::kInt).to(at::kLong).narrow(0, 1, tokens - 1);
  return at::nll_loss(at::log_softmax(logits.narrow(0, 0, tokens - 1), 1), targets).item<double>();
}

class MatrixTest : public testing::TestWithParam<const char*> {
 protected:
  MatrixTest() : checkpoint_(folder_.path() / "tiny"), artifact_(folder_.path() / "out") {
    at::set_num_threads(1);  // waking others would take most of the time
    // Neither width is a multiple of a group.
    const MatrixShape shape = {.hidden = 72, .heads = 6, .kv_heads = 3, .intermediate = 100};
    const absl::Status written = WriteMatrixModel(GetParam(), shape, checkpoint_);
    EXPECT_TRUE(written.ok()) << written;
    calibration_ = WriteMatrixCorpus(folder_.path());
    for (int32_t i = 0; i < kWindow; ++i) batch_.tokens.push_back(i * 5 % 256);
    batch_.segments = {{.first_row = 0, .length = kWindow, .position = 0, .blocks = {}}};
  }

  at::Tensor Logits(const std::filesystem::path& model) {
    const c10::InferenceMode inference;
    const auto decoder = Decoder::Load(model, Compute::kF32);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    if (!decoder.ok()) return at::full({kWindow, 256}, std::nan(""));
    std::vector<int64_t> rows(kWindow);
    std::iota(rows.begin(), rows.end(), 0);
    return (*decoder)->Logits((*decoder)->Forward(batch_, nullptr), rows);
  }

  // Runs a job and looks at what it made, which it removes.
  void Check(const QuantizeSpec& spec) {
    SCOPED_TRACE(Describe(spec));
    const auto summary = QuantizeModel(spec, checkpoint_, artifact_,
                                       [](const Progress&) { return absl::OkStatus(); });
    ASSERT_TRUE(summary.ok()) << summary.status();
    const at::Tensor logits = Logits(artifact_);
    EXPECT_TRUE(logits.isfinite().all().item<bool>());
    EXPECT_TRUE(std::isfinite(NegativeLogLikelihood(logits, batch_)));
    if (spec.weights) CheckWeights(*spec.weights, spec.method == Method::kRtn);
    std::filesystem::remove_all(artifact_);
  }

  void CheckWeights(const WeightSpec& spec, bool rounded) {
    const c10::InferenceMode inference;
    const auto before = DecoderLoader::Open(checkpoint_, Compute::kF32).value();
    const auto after = DecoderLoader::Open(artifact_, Compute::kF32).value();
    const DecoderLayer original = before->LoadLayer(0).value();
    const DecoderLayer layer = after->LoadLayer(0).value();
    for (size_t i = 0; i < layer.linears.size(); ++i) {
      const std::string& name = layer.linears[i].name;
      const at::Tensor weight = layer.linears[i].weights.weight.contiguous();
      const int64_t rows = weight.size(0);
      const int64_t cols = weight.size(1);
      const int64_t width = spec.group_size == kWholeRow ? cols : spec.group_size;
      const int64_t groups = (cols + width - 1) / width;
      const std::vector<float> scales =
          StoredScales(after->tensors(), name, spec.constraint, rows, groups);
      const auto* w = weight.const_data_ptr<float>();
      int64_t strangers = 0;
      for (int64_t n = 0; n < weight.numel(); ++n) {
        const float scale = scales[n / cols * groups + n % cols / width];
        const double value = NearestValue(spec, static_cast<double>(w[n]) / scale);
        if (static_cast<float>(value) * scale != w[n]) ++strangers;
      }
      EXPECT_EQ(strangers, 0) << name;
      const at::Tensor& whole = original.linears[i].weights.weight;
      if (!rounded) continue;  // GPTQ moves weights away, and those of dead inputs to 0
      // Codes or scales in a wrong place lose all of the signal, half of it no format does.
      EXPECT_LT(((weight - whole).norm() / whole.norm()).item<double>(), 0.5) << name;
    }
  }

  TempFolder folder_;
  std::filesystem::path checkpoint_;
  std::filesystem::path artifact_;
  Batch batch_;
  CalibrationSpec calibration_;
};

TEST_P(MatrixTest, RoundToNearest) {
  for (const QuantizeSpec& spec : RoundToNearestCells(GetParam())) Check(spec);
}

TEST_P(MatrixTest, GptqAndLorc) {
  for (const QuantizeSpec& spec : GptqAndLorcCells(calibration_)) Check(spec);
}

TEST_P(MatrixTest, ScaleSearchAndIterations) {
  for (const QuantizeSpec& spec : ScaleSearchCells(calibration_)) Check(spec);
}

TEST_P(MatrixTest, ActivationsAlone) {
  for (const QuantizeSpec& spec : ActivationCells()) Check(spec);
}

TEST_P(MatrixTest, ExclusionByPattern) {
  const auto summary = QuantizeModel(ExclusionCell(GetParam(), calibration_), checkpoint_,
                                     artifact_, [](const Progress&) { return absl::OkStatus(); });
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_TRUE(Logits(artifact_).isfinite().all().item<bool>());
  const auto loader = DecoderLoader::Open(artifact_, Compute::kF32).value();
  const std::vector<LinearInfo> linears = loader->Linears().value();
  for (const LinearInfo& linear : linears) {
    const bool left = !linear.name.ends_with("k_proj") && !linear.name.ends_with("o_proj") &&
                      !linear.name.ends_with("out_proj");
    EXPECT_EQ(loader->tensors().Contains(StrCat(linear.name, ".weight")), left) << linear.name;
    EXPECT_NE(loader->tensors().Contains(StrCat(linear.name, ".weight_codes")), left)
        << linear.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MatrixTest, testing::ValuesIn(kMatrixFamilies),
                         [](const auto& info) { return std::string(info.param); });

// The largest rank of the paper's range, which a matrix must be large enough for.
TEST(MatrixRankTest, LorcOfRank128) {
  const TempFolder folder;
  ASSERT_TRUE(WriteTinyLlama({.hidden = 128, .layers = 1, .kv_heads = 4, .intermediate = 160},
                             folder.path() / "m")
                  .ok());
  QuantizeSpec spec;
  spec.weights = WeightSpec{.group_size = 64};
  spec.method = Method::kRtn;
  spec.lorc_rank = 128;
  const auto summary =
      QuantizeModel(spec, folder.path() / "m", folder.path() / "out", [](const Progress& progress) {
        if (progress.finished == nullptr) return absl::OkStatus();
        for (const LinearReport& linear : progress.finished->linears) {
          // The whole error is corrected, but for bf16 factors.
          EXPECT_LT(linear.weight_error, 0.002) << linear.name;
        }
        return absl::OkStatus();
      });
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_TRUE(Decoder::Load(folder.path() / "out", Compute::kF32).ok());
}

}  // namespace
}  // namespace nibble
