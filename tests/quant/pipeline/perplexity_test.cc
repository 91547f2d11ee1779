#include "quant/pipeline/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

TEST(EvaluatePerplexityTest, IsTheExponentOfTheMeanOverAllTargets) {
  const TempFolder folder;
  ASSERT_TRUE(WriteTinyLlama({}, folder.path()).ok());
  const auto decoder = Decoder::Load(folder.path(), Compute::kF32).value();
  // Of different lengths: the mean is over tokens, not over windows.
  const std::vector<std::vector<int32_t>> windows = {{1, 7, 200, 31, 5}, {9, 100, 3}};
  double sum = 0;
  for (const std::vector<int32_t>& window : windows) {
    const auto length = static_cast<int64_t>(window.size());
    const Batch batch = {window, {{.first_row = 0, .length = length, .position = 0, .blocks = {}}}};
    std::vector<int64_t> rows(window.size());
    std::iota(rows.begin(), rows.end(), 0);
    const at::Tensor logits = decoder->Logits(decoder->Forward(batch, nullptr), rows).contiguous();
    for (size_t i = 0; i + 1 < window.size(); ++i) {
      const float* row = logits.const_data_ptr<float>() + i * 256;
      double all = 0;
      for (int token = 0; token < 256; ++token) all += std::exp(static_cast<double>(row[token]));
      sum += std::log(all) - row[window[i + 1]];
    }
  }
  const auto result = EvaluatePerplexity(*decoder, windows);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, 2);
  EXPECT_EQ(result->targets, 6);
  EXPECT_NEAR(result->perplexity, std::exp(sum / 6), 1e-5 * result->perplexity);
}

TEST(EvaluatePerplexityTest, RefusesNothingToScore) {
  const TempFolder folder;
  ASSERT_TRUE(WriteTinyLlama({}, folder.path()).ok());
  const auto decoder = Decoder::Load(folder.path(), Compute::kF32).value();
  EXPECT_EQ(EvaluatePerplexity(*decoder, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(EvaluatePerplexity(*decoder, {{{1}}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
