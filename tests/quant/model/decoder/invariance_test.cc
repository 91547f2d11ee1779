// What a CPU computes for a token depends on the tokens up to it alone, bit for bit.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>

#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

struct Model {
  std::string name;
  std::string fixture;                // a checkpoint; empty: a random LLaMA, quantized by `spec`
  std::optional<WeightSpec> weights;  // absent: stay
  std::optional<ActivationSpec> activations;
  int lorc_rank = 0;
  std::vector<std::string> exclude;
  Compute compute = Compute::kF32;
};

// One sequence on its way through the cache.
struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;
  int64_t done = 0;
  std::vector<at::Tensor> logits;

  int64_t left() const { return static_cast<int64_t>(tokens.size()) - done; }
};

class InvarianceTest : public testing::TestWithParam<Model> {
 protected:
  void SetUp() override {
    const Model& model = GetParam();
    std::filesystem::path path = std::filesystem::path(NIBBLE_FIXTURES) / "models" / model.fixture;
    if (model.fixture.empty()) {
      path = folder_.path() / "artifact";
      const std::filesystem::path checkpoint = folder_.path() / "tiny";
      ASSERT_TRUE(
          WriteTinyLlama({.hidden = 80, .layers = 2, .intermediate = 150}, checkpoint).ok());
      QuantizeSpec spec;
      spec.weights = model.weights;
      spec.activations = model.activations;
      spec.method = Method::kRtn;
      spec.lorc_rank = model.lorc_rank;
      spec.exclude = model.exclude;
      const auto made =
          QuantizeModel(spec, checkpoint, path, [](const Progress&) { return absl::OkStatus(); });
      ASSERT_TRUE(made.ok()) << made.status();
    }
    auto decoder = Decoder::Load(path, model.compute);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = *std::move(decoder);
    cache_ = decoder_->MakeCache(/*blocks=*/24);
    for (KvBlocks& blocks : cache_) {
      blocks.k.fill_(NAN);
      blocks.v.fill_(NAN);
    }
  }

  std::vector<int32_t> RandomTokens(int64_t count) {
    std::vector<int32_t> tokens(count);
    const auto vocab = static_cast<uint64_t>(decoder_->config().vocab);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % vocab);
    return tokens;
  }

  // Logits of every token, computed at once without a cache.
  at::Tensor Alone(const std::vector<int32_t>& tokens) {
    const auto count = static_cast<int64_t>(tokens.size());
    const Batch batch{tokens, {{0, count, 0, {}}}};
    return Rows(decoder_->Forward(batch, nullptr), count);
  }
  at::Tensor Rows(const at::Tensor& hidden, int64_t count) {
    std::vector<int64_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    return decoder_->Logits(hidden, rows);
  }

  // Computes the next counts[i] tokens of sequences[i] in one batch.
  void Step(const std::vector<Sequence*>& sequences, const std::vector<int64_t>& counts) {
    Batch batch;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& sequence = *sequences[i];
      batch.segments.push_back(
          {static_cast<int64_t>(batch.tokens.size()), counts[i], sequence.done, sequence.blocks});
      const auto begin = sequence.tokens.begin() + sequence.done;
      batch.tokens.insert(batch.tokens.end(), begin, begin + counts[i]);
    }
    const at::Tensor logits =
        Rows(decoder_->Forward(batch, &cache_), static_cast<int64_t>(batch.tokens.size()));
    for (size_t i = 0; i < sequences.size(); ++i) {
      sequences[i]->logits.push_back(logits.narrow(0, batch.segments[i].first_row, counts[i]));
      sequences[i]->done += counts[i];
    }
  }

  static constexpr uint64_t kSeed = 20261126;
  const c10::InferenceMode inference_;
  TempFolder folder_;
  std::mt19937_64 random_{kSeed};
  std::unique_ptr<Decoder> decoder_;
  std::vector<KvBlocks> cache_;
};

TEST_P(InvarianceTest, ChunksChangeNoBit) {
  const std::vector<int32_t> tokens = RandomTokens(60);
  const at::Tensor expected = Alone(tokens);
  for (const std::vector<int64_t>& chunks : {std::vector<int64_t>(60, 1), {17, 1, 1, 30, 11}}) {
    Sequence sequence{tokens, {9, 3, 17, 0}};
    for (const int64_t chunk : chunks) Step({&sequence}, {chunk});
    EXPECT_TRUE(at::equal(at::cat(sequence.logits), expected)) << "first chunk " << chunks[0];
  }
}

TEST_P(InvarianceTest, BatchChangesNoBit) {
  // Of different lengths, their blocks interleaved; random chunks of a random choice of them.
  std::vector<Sequence> sequences(5);
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].tokens = RandomTokens(1 + static_cast<int64_t>(random_() % 60));
    for (size_t block = 0; block < 4; ++block) {
      sequences[i].blocks.push_back(static_cast<int32_t>(block * sequences.size() + i));
    }
  }
  while (true) {
    std::vector<Sequence*> chosen;
    std::vector<int64_t> counts;
    for (Sequence& sequence : sequences) {
      if (sequence.left() == 0 || random_() % 3 == 0) continue;
      const bool decode = random_() % 2 == 0;
      chosen.push_back(&sequence);
      counts.push_back(
          decode ? 1
                 : 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(sequence.left())));
    }
    if (!chosen.empty()) Step(chosen, counts);
    if (std::ranges::all_of(sequences, [](const Sequence& s) { return s.left() == 0; })) break;
  }
  for (const Sequence& sequence : sequences) {
    EXPECT_TRUE(at::equal(at::cat(sequence.logits), Alone(sequence.tokens)))
        << sequence.tokens.size() << " tokens, seed " << kSeed;
  }
}

TEST_P(InvarianceTest, APrefixFromTheCacheChangesNoBit) {
  Sequence first{RandomTokens(50), {1, 2, 3, 4}};
  for (const int64_t chunk : {5, 45}) Step({&first}, {chunk});
  // Shares two blocks, then goes its own way.
  Sequence second{first.tokens, {1, 2, 7, 8}};
  second.tokens.resize(32);
  for (const int32_t token : RandomTokens(20)) second.tokens.push_back(token);
  second.done = 32;
  for (const int64_t chunk : {13, 7}) Step({&second}, {chunk});
  EXPECT_TRUE(at::equal(at::cat(second.logits), Alone(second.tokens).narrow(0, 32, 20)));
}

constexpr ActivationSpec kE4M3 = {.format = Format::kE4M3};
constexpr ActivationSpec kInt8 = {.format = Format::kInt8, .asymmetric = true};

INSTANTIATE_TEST_SUITE_P(
    Models, InvarianceTest,
    testing::Values(
        Model{.name = "e2m1_lorc",
              .weights = WeightSpec{.format = Format::kE2M1, .group_size = 64},
              .activations = kE4M3,
              .lorc_rank = 5},
        Model{.name = "int4_asymmetric_excluded",
              .weights = WeightSpec{.format = Format::kInt4,
                                    .asymmetric = true,
                                    .group_size = 32,
                                    .constraint = ScaleConstraint::kNone},
              .activations = kInt8,
              .exclude = {"*.k_proj", "*.layers.1.mlp.*"},
              .compute = Compute::kBf16},
        Model{.name = "e4m3", .weights = WeightSpec{.format = Format::kE4M3}, .activations = kE4M3},
        Model{.name = "activations_alone", .activations = kE4M3},
        Model{.name = "llama_mqa_bias", .fixture = "llama_mqa_bias"},
        Model{.name = "llama_head_dim_100", .fixture = "llama_head_dim_100"},
        Model{.name = "opt_projected", .fixture = "opt_post_norm_projected"},
        Model{.name = "opt_bf16", .fixture = "opt_pre_norm", .compute = Compute::kBf16}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace nibble
