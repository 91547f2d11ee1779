#include "quant/model/decoder/decoder.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "tests/temp_folder.h"

namespace nibble {
namespace {

// What f32 sums in another order may differ by, relative to the largest logit.
constexpr double kTolerance = 1e-4;

struct Expected {
  std::vector<int32_t> tokens;
  at::Tensor logits;  // [tokens, vocab]
};

std::filesystem::path Models() { return std::filesystem::path(NIBBLE_FIXTURES) / "models"; }

Expected ReadExpected(const std::string& name) {
  auto file = SafetensorsFile::Open(Models() / (name + ".expected.safetensors"));
  EXPECT_TRUE(file.ok()) << file.status();
  Expected expected;
  const TensorView& tokens = (*file)->tensors().at("tokens");
  expected.tokens.resize(tokens.elements());
  std::memcpy(expected.tokens.data(), tokens.bytes.data(), tokens.bytes.size());
  const TensorView& logits = (*file)->tensors().at("logits");
  expected.logits = at::empty(logits.shape, at::kFloat);
  std::memcpy(expected.logits.data_ptr(), logits.bytes.data(), logits.bytes.size());
  return expected;
}

std::vector<int64_t> AllRows(int64_t count) {
  std::vector<int64_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

double RelativeDifference(const at::Tensor& found, const at::Tensor& expected) {
  return ((found - expected).abs().max() / expected.abs().max()).item<double>();
}

class DecoderTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    expected_ = ReadExpected(GetParam());
    auto decoder = Decoder::Load(Models() / GetParam(), Compute::kF32);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = *std::move(decoder);
  }
  int64_t length() const { return static_cast<int64_t>(expected_.tokens.size()); }

  // The logits of one chunk at a time over a paged cache whose blocks lie in reverse order.
  at::Tensor InChunks(const std::vector<int64_t>& chunks) {
    std::vector<KvBlocks> cache = decoder_->MakeCache(/*blocks=*/16);
    std::vector<at::Tensor> logits;
    int64_t position = 0;
    for (const int64_t chunk : chunks) {
      Batch batch;
      batch.tokens.assign(expected_.tokens.begin() + position,
                          expected_.tokens.begin() + position + chunk);
      batch.segments.push_back({0, chunk, position, {15, 14, 13, 12, 11, 10, 9, 8, 7, 6}});
      logits.push_back(decoder_->Logits(decoder_->Forward(batch, &cache), AllRows(chunk)));
      position += chunk;
    }
    return at::cat(logits);
  }

  const c10::InferenceMode inference_;
  Expected expected_;
  std::unique_ptr<Decoder> decoder_;
};

TEST_P(DecoderTest, LogitsAgreeWithTransformers) {
  Batch batch{expected_.tokens, {{0, length(), 0, {}}}};
  const at::Tensor logits = decoder_->Logits(decoder_->Forward(batch, nullptr), AllRows(length()));
  EXPECT_LT(RelativeDifference(logits, expected_.logits), kTolerance);
}

TEST_P(DecoderTest, ChunksOverPagedCacheGiveTheSame) {
  EXPECT_LT(RelativeDifference(InChunks({17, 1, 1, 6, 15}), expected_.logits), kTolerance);
}

TEST_P(DecoderTest, SequencesOfABatchDoNotMeet) {
  Batch batch{expected_.tokens, {{0, length(), 0, {}}}};
  batch.tokens.insert(batch.tokens.begin(), {5, 6, 7});
  batch.segments = {{0, 3, 0, {}}, {3, length(), 0, {}}};
  const at::Tensor logits =
      decoder_->Logits(decoder_->Forward(batch, nullptr), AllRows(length() + 3));
  EXPECT_LT(RelativeDifference(logits.narrow(0, 3, length()), expected_.logits), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Variants, DecoderTest,
                         testing::Values("llama_mha", "llama_gqa_tied", "llama_mqa_bias",
                                         "llama_head_dim", "llama_head_dim_80",
                                         "llama_head_dim_100", "llama_head_dim_128", "llama3_rope",
                                         "opt_pre_norm", "opt_post_norm_projected", "opt_no_bias"),
                         [](const auto& info) { return info.param; });

TEST(DecoderLoaderTest, MissingAndMisshapenTensorsAreNamed) {
  const std::filesystem::path folder = testing::TempDir() + "/misshapen";
  std::filesystem::remove_all(folder);
  std::filesystem::copy(Models() / "llama_mha", folder);
  auto source = TensorSource::Open(folder);
  ASSERT_TRUE(source.ok());
  std::vector<NamedTensor> tensors;
  for (const std::string& name : (*source)->Names()) {
    const TensorView view = *(*source)->Find(name);
    if (name == "model.layers.1.mlp.up_proj.weight") continue;
    tensors.push_back({name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}});
  }
  source->reset();
  ASSERT_TRUE(WriteSafetensors(folder / "model.safetensors", tensors).ok());
  const auto decoder = Decoder::Load(folder, Compute::kF32);
  ASSERT_FALSE(decoder.ok());
  EXPECT_NE(decoder.status().message().find("model.layers.1.mlp.up_proj.weight"), std::string::npos)
      << decoder.status();
}

// What is not quantized is stored so: of every type that a checkpoint may have, and in more than
// one of the pieces that it is read in.
TEST(DecoderLoaderTest, ReadsAnyTensorRoundedToBFloat16) {
  const TempFolder folder;
  std::filesystem::copy(Models() / "llama_mha", folder.path() / "m");
  constexpr int64_t kElements = 600'001;
  const at::Tensor values = at::randn({kElements});
  std::vector<NamedTensor> tensors;
  const auto add = [&](const char* name, DType dtype, at::ScalarType type) {
    const at::Tensor stored = values.to(type);
    const auto* bytes = static_cast<const uint8_t*>(stored.const_data_ptr());
    tensors.push_back({name, dtype, {kElements}, {bytes, bytes + stored.nbytes()}});
  };
  add("f32", DType::kF32, at::kFloat);
  add("f16", DType::kF16, at::kHalf);
  add("bf16", DType::kBF16, at::kBFloat16);
  tensors.push_back({"none", DType::kF32, {0}, {}});
  ASSERT_TRUE(WriteSafetensors(folder.path() / "m" / "model.safetensors", tensors).ok());
  const auto loader = DecoderLoader::Open(folder.path() / "m", Compute::kF32).value();
  const std::pair<const char*, at::ScalarType> types[] = {
      {"f32", at::kFloat}, {"f16", at::kHalf}, {"bf16", at::kBFloat16}};
  for (const auto& [name, type] : types) {
    const NamedTensor read = loader->ReadBFloat16(name).value();
    EXPECT_EQ(read.dtype, DType::kBF16);
    EXPECT_EQ(read.bytes, BFloat16Tensor(name, values.to(type)).bytes) << name;
  }
  EXPECT_TRUE(loader->ReadBFloat16("none").value().bytes.empty());
  EXPECT_EQ(loader->ReadBFloat16("absent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
