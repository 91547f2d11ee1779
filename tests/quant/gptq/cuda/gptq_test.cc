// Runs on a GPU only. The oracle is the CPU's path on the same matrices.
#include "quant/gptq/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "quant/kernels/device/torch_device.h"
#include "tests/quant/gptq/test_util.h"

namespace nibble {
namespace {

constexpr uint64_t kSeed = 20;

class CudaGptqTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const absl::Status status = PrepareDevice({.type = Device::Type::kCuda});
    ASSERT_TRUE(status.ok()) << status;
  }
  static at::Tensor OnGpu(const at::Tensor& x) { return x.to(at::kCUDA); }
  // The factor of one device on another.
  static GptqFactor OnGpu(GptqFactor factor) {
    factor.order = OnGpu(factor.order);
    factor.hinv_upper = OnGpu(factor.hinv_upper);
    factor.dead = OnGpu(factor.dead);
    return factor;
  }
  static double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
    return ((a.cpu() - b.cpu()).abs().max() / a.abs().max().cpu()).item<double>();
  }
};

TEST_F(CudaGptqTest, HessianSumsTheSame) {
  const at::Tensor x = CorrelatedInputs(520, kSeed).to(at::kBFloat16);  // products are exact
  Hessian cpu(520);
  cpu.Accumulate(x.to(at::kFloat));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Hessian gpu(520, at::kCUDA);
    gpu.Accumulate(OnGpu(x).to(type));
    // 2080 f32 additions each, in whatever order.
    EXPECT_LT(LargestDifference(cpu.matrix(), gpu.matrix()), 2080 * 0x1p-24) << at::toString(type);
  }
}

TEST_F(CudaGptqTest, FactorsAgree) {
  at::Tensor hessian = CorrelatedHessian(256, kSeed);
  hessian.select(0, 9).zero_();  // a dead input
  hessian.select(1, 9).zero_();
  for (const bool act_order : {false, true}) {
    const GptqOptions options = {.act_order = act_order};
    const GptqFactor cpu = FactorHessian("layer", hessian, options).value();
    const GptqFactor gpu = FactorHessian("layer", OnGpu(hessian), options).value();
    EXPECT_TRUE(gpu.order.cpu().equal(cpu.order));
    EXPECT_TRUE(gpu.dead.cpu().equal(cpu.dead));
    EXPECT_EQ(gpu.damping, cpu.damping);
    // Both in f64, then rounded: the condition is at most 1 / damping x 256.
    EXPECT_LT(LargestDifference(cpu.hinv_upper, gpu.hinv_upper), 0x1p-22);
  }
}

// Sums of squares differ in their last bits, so that of scales as good either may be found.
TEST_F(CudaGptqTest, SearchesScalesAsGoodAsTheCpus) {
  const at::Tensor w = RandomWeights(200, 300, kSeed);
  const at::Tensor h = RandomNormal(1, 300, kSeed + 1).squeeze(0).square();
  const auto errors = [&](const at::Tensor& w_hat) {
    return (w - w_hat.cpu()).to(at::kDouble).square().mul(h).sum(1);
  };
  for (const Format format : {Format::kE2M1, Format::kE3M0, Format::kInt4}) {
    for (const auto constraint :
         {ScaleConstraint::kNone, ScaleConstraint::kM1, ScaleConstraint::kM2}) {
      const WeightSpec spec = Spec(format, 64, constraint);
      const auto cpu = QuantizeRtn("layer", w, spec, h).value();
      const auto gpu = QuantizeRtn("layer", OnGpu(w), spec, OnGpu(h)).value();
      const at::Tensor expected = errors(Dequantize(cpu.matrix));
      EXPECT_TRUE(errors(Dequantize(gpu.matrix)).allclose(expected, 1e-5, 0))
          << FormatName(format) << ' ' << ScaleConstraintName(constraint);
      EXPECT_EQ(gpu.clamped_groups, cpu.clamped_groups);
      const GptqOptions options;
      const GptqFactor factor = FactorHessian("layer", CorrelatedHessian(300, 3), options).value();
      const auto solved = QuantizeGptq("layer", OnGpu(w), OnGpu(factor), spec, options, OnGpu(h));
      ASSERT_TRUE(solved.ok()) << solved.status();
      EXPECT_TRUE(solved->matrix.Validate("layer").ok());
    }
  }
}

// Within one block there is no matrix product: what the kernel does is the CPU's to the bit.
TEST_F(CudaGptqTest, CodesOfOneBlockAreTheCpus) {
  const at::Tensor w = RandomWeights(200, 128, kSeed);
  const at::Tensor hessian = CorrelatedHessian(128, kSeed + 1);
  for (const bool act_order : {false, true}) {
    const GptqOptions options = {.act_order = act_order};
    const GptqFactor factor = FactorHessian("layer", hessian, options).value();
    for (const auto constraint : {ScaleConstraint::kNone, ScaleConstraint::kM2}) {
      const WeightSpec spec = Spec(Format::kE2M1, 32, constraint);
      const auto cpu = QuantizeGptq("layer", w, factor, spec, options).value();
      const auto gpu = QuantizeGptq("layer", OnGpu(w), OnGpu(factor), spec, options).value();
      EXPECT_EQ(gpu.matrix.codes, cpu.matrix.codes);
      EXPECT_EQ(gpu.matrix.scale, cpu.matrix.scale);
      EXPECT_EQ(gpu.matrix.row_scale, cpu.matrix.row_scale);
      EXPECT_EQ(gpu.matrix.k, cpu.matrix.k);
      EXPECT_EQ(gpu.clamped_groups, cpu.clamped_groups);
    }
  }
}

// Across blocks the products round differently, a weight near a midpoint may fall to the other
// side, and its error spreads: codes differ, the quality does not.
TEST_F(CudaGptqTest, WholeSolvesAgreeInOutputError) {
  const at::Tensor w = RandomWeights(256, 1000, kSeed);
  const at::Tensor hessian = CorrelatedHessian(1000, kSeed + 1);
  for (const bool act_order : {false, true}) {
    const GptqOptions options = {.act_order = act_order};
    const GptqFactor factor = FactorHessian("layer", hessian, options).value();
    for (const WeightSpec& spec : {Spec(Format::kE2M1, 256, ScaleConstraint::kM2),
                                   Spec(Format::kE3M0, 64, ScaleConstraint::kM1),
                                   WeightSpec{Format::kInt4, true, 128, ScaleConstraint::kNone}}) {
      const auto cpu = QuantizeGptq("layer", w, factor, spec, options).value();
      const auto gpu = QuantizeGptq("layer", OnGpu(w), OnGpu(factor), spec, options).value();
      const double expected = RelativeOutputError(w, Dequantize(cpu.matrix), hessian);
      const double found = RelativeOutputError(w, Dequantize(gpu.matrix), hessian);
      EXPECT_NEAR(found, expected, 0.02 * expected) << FormatName(spec.format);
      EXPECT_TRUE(gpu.matrix.Validate("layer").ok());
    }
  }
}

TEST_F(CudaGptqTest, RoundingToNearestIsTheCpus) {
  const at::Tensor w = RandomWeights(100, 345, kSeed);
  for (const WeightSpec& spec : {Spec(Format::kE2M1, 64, ScaleConstraint::kM2),
                                 Spec(Format::kE4M3, kWholeRow, ScaleConstraint::kNone),
                                 WeightSpec{Format::kInt8, true, 16, ScaleConstraint::kNone}}) {
    const auto cpu = QuantizeRtn("layer", w, spec).value();
    const auto gpu = QuantizeRtn("layer", OnGpu(w), spec).value();
    EXPECT_EQ(gpu.matrix.codes, cpu.matrix.codes);
    const at::Tensor values = Dequantize(cpu.matrix);
    EXPECT_TRUE(Dequantize(cpu.matrix, at::TensorOptions(at::kFloat).device(at::kCUDA))
                    .cpu()
                    .equal(values));
    EXPECT_TRUE(Dequantize(cpu.matrix, at::TensorOptions(at::kBFloat16).device(at::kCUDA))
                    .cpu()
                    .equal(values.to(at::kBFloat16)));
  }
}

TEST_F(CudaGptqTest, LorcCapturesTheEnergyOfTheCpus) {
  const at::Tensor h = CorrelatedHessian(640, kSeed);
  for (const int64_t rows : {600, 900}) {
    const at::Tensor e = RandomNormal(rows, 640, kSeed + 3);
    for (const auto metric : {LorcMetric::kWeight, LorcMetric::kInput}) {
      const LorcFactors cpu = ComputeLorc("layer", e, 8, metric, h).value();
      const LorcFactors gpu = ComputeLorc("layer", OnGpu(e), 8, metric, OnGpu(h)).value();
      const auto left = [&](const LorcFactors& factors) {
        const at::Tensor rest =
            e - factors.a.cpu().to(at::kFloat).mm(factors.b.cpu().to(at::kFloat));
        if (metric == LorcMetric::kWeight) return rest.square().sum(at::kDouble).item<double>();
        return rest.mm(h).mul(rest).sum(at::kDouble).item<double>();
      };
      // What is left is all but what is captured: within 1e-3 of the whole.
      const double whole = left({at::zeros({rows, 1}), at::zeros({1, 640})});
      EXPECT_NEAR(left(gpu), left(cpu), 1e-3 * whole);
    }
  }
}

TEST_F(CudaGptqTest, RefusesNansByNameAndPlace) {
  at::Tensor w = RandomWeights(4, 32, kSeed);
  w[1][2] = std::nanf("");
  ExpectRefused(
      QuantizeRtn("layer 7", OnGpu(w), Spec(Format::kE2M1, 16, ScaleConstraint::kM2)).status(),
      "layer 7: value 34 is");
}

}  // namespace
}  // namespace nibble
