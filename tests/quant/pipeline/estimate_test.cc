// Estimates against what jobs really take, and their growth with what they are made of.
#include "quant/pipeline/estimate.h"

#include <gmock/gmock.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/model/checkpoint/json.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/quant/pipeline/quantize_program.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using std::filesystem::path;

constexpr Place kTwoCores = {.device = {}, .threads = 2};
constexpr Place kHopper = {.device = {.type = Device::Type::kCuda}, .threads = 16};

void WriteCorpus(const path& file) {
  std::ofstream corpus(file);
  for (int i = 0; i < 600; ++i) corpus << "word" << (i * i) % 37 << ' ';
}

// A checkpoint in a model's true shapes without any data: its file is a hole of the right size.
struct Hollow {
  int64_t hidden, layers, heads, kv_heads, intermediate, vocab;
  bool tied;
};
constexpr Hollow kSmolLm2 = {576, 30, 9, 3, 1536, 49152, true};
constexpr Hollow kLlama7b = {4096, 32, 32, 32, 11008, 32000, false};
constexpr Hollow kLlama13b = {5120, 40, 40, 40, 13824, 32000, false};

void WriteHollow(const Hollow& model, const path& folder) {
  std::filesystem::create_directories(folder);
  const Json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_size", model.hidden},
                       {"num_hidden_layers", model.layers},
                       {"num_attention_heads", model.heads},
                       {"num_key_value_heads", model.kv_heads},
                       {"intermediate_size", model.intermediate},
                       {"vocab_size", model.vocab},
                       {"max_position_embeddings", 2048},
                       {"rms_norm_eps", 1e-5},
                       {"tie_word_embeddings", model.tied}};
  std::ofstream(folder / "config.json") << config;
  Json header = Json::object();
  int64_t end = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const int64_t begin = end;
    end += 2 * shape.front() * (shape.size() == 2 ? shape.back() : 1);
    header[name + ".weight"] = {{"dtype", "F16"}, {"shape", shape}, {"data_offsets", {begin, end}}};
  };
  const int64_t h = model.hidden, m = model.intermediate;
  const int64_t kv = h / model.heads * model.kv_heads;
  add("model.embed_tokens", {model.vocab, h});
  add("model.norm", {h});
  if (!model.tied) add("lm_head", {model.vocab, h});
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string base = "model.layers." + std::to_string(layer) + ".";
    add(base + "input_layernorm", {h});
    add(base + "post_attention_layernorm", {h});
    add(base + "self_attn.q_proj", {h, h});
    add(base + "self_attn.k_proj", {kv, h});
    add(base + "self_attn.v_proj", {kv, h});
    add(base + "self_attn.o_proj", {h, h});
    add(base + "mlp.gate_proj", {m, h});
    add(base + "mlp.up_proj", {m, h});
    add(base + "mlp.down_proj", {h, m});
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream file(folder / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  file.close();
  std::filesystem::resize_file(folder / "model.safetensors",
                               sizeof(length) + length + static_cast<uint64_t>(end));
}

class EstimateTest : public testing::Test {
 protected:
  EstimateTest() { WriteCorpus(corpus_); }

  QuantizeSpec Spec() const {
    QuantizeSpec spec = ProgramSpec(corpus_);
    spec.exclude.clear();
    return spec;
  }
  // The issue's: 128 windows of 2048, groups of 256, LoRC 8.
  QuantizeSpec Large() const {
    QuantizeSpec spec = Spec();
    spec.weights->group_size = 256;
    spec.lorc_rank = 8;
    spec.calibration.windows = 128;
    spec.calibration.window_tokens = 2048;
    spec.compute = Compute::kBf16;
    return spec;
  }
  QuantizeEstimate Estimate(const QuantizeSpec& spec, const Place& place) const {
    const auto estimate = EstimateQuantize(spec, checkpoint_, place);
    EXPECT_TRUE(estimate.ok()) << estimate.status();
    return estimate.value_or(QuantizeEstimate{});
  }

  TempFolder folder_;
  const path corpus_ = folder_.path() / "c.txt";
  const path checkpoint_ = folder_.path() / "model";
  const path artifact_ = folder_.path() / "artifacts" / "out";
};

// The most memory of a process that does ProgramSpec's job, rotated unless `rotate_seed` is empty.
int64_t MeasuredPeak(const path& checkpoint, const path& artifact, const path& corpus,
                     const std::string& rotate_seed) {
  const std::string command = std::string(QUANTIZE_PROGRAM) + " " + checkpoint.string() + " " +
                              artifact.string() + " " + corpus.string() + " " + rotate_seed;
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(command.c_str(), "r"), pclose);
  int64_t peak = 0;
  EXPECT_EQ(fscanf(output.get(), "ready peak %ld", &peak), 1);
  return peak;
}

// Shapes whose peaks lie in different phases: the factor of the largest H, the layer's weights and
// their rounding, a linear on its turn.
TEST_F(EstimateTest, HostMemoryIsThatOfARealJob) {
  const struct {
    const char* what;
    TinyLlama model;
    const char* rotate_seed;
  } cases[] = {
      {"wide input", {.hidden = 64, .layers = 3, .intermediate = 3072}, ""},
      {"many weights", {.hidden = 1024, .layers = 3, .intermediate = 1024}, ""},
      {"rotated", {.hidden = 1024, .layers = 3, .intermediate = 1024}, "1"},
  };
  for (const auto& [what, model, rotate_seed] : cases) {
    SCOPED_TRACE(what);
    ASSERT_TRUE(WriteTinyLlama(model, checkpoint_).ok());
    QuantizeSpec spec = ProgramSpec(corpus_);
    if (*rotate_seed != '\0') spec.rotate_seed = 1;
    const auto estimate = Estimate(spec, kTwoCores);
    const int64_t measured = MeasuredPeak(checkpoint_, artifact_, corpus_, rotate_seed);
    std::printf("%s: estimate %ld MiB, measured %ld MiB\n", what, estimate.host_bytes >> 20,
                measured >> 20);
    EXPECT_GE(static_cast<double>(estimate.host_bytes), static_cast<double>(measured));
    EXPECT_LE(static_cast<double>(estimate.host_bytes), 1.5 * static_cast<double>(measured));
    EXPECT_EQ(estimate.device_bytes, 0);
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(EstimateTest, TheArtifactIsNoLargerAndAtMostTwoPercentSmaller) {
  ASSERT_TRUE(WriteTinyLlama({.hidden = 512, .layers = 2, .intermediate = 2048}, checkpoint_).ok());
  const std::vector<std::function<void(QuantizeSpec&)>> changes = {
      [](QuantizeSpec&) {},
      [](QuantizeSpec& s) { s.lorc_rank = 4; },
      [](QuantizeSpec& s) { s.exclude = {"model.layers.1.*"}; },
      [](QuantizeSpec& s) { s.weights->constraint = ScaleConstraint::kM1; },
      [](QuantizeSpec& s) { s.weights->constraint = ScaleConstraint::kNone; },
      [](QuantizeSpec& s) { s.weights->group_size = kWholeRow; },
      [](QuantizeSpec& s) {
        s.weights = WeightSpec{.format = Format::kInt8,
                               .asymmetric = true,
                               .group_size = 64,
                               .constraint = ScaleConstraint::kNone};
      },
      [](QuantizeSpec& s) { s.weights.reset(); },
      [](QuantizeSpec& s) { s.rotate_seed = 1; }};
  for (size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    QuantizeSpec spec = Spec();
    spec.lorc_rank = 0;
    spec.method = Method::kRtn;
    spec.calibration.corpus.clear();
    changes[i](spec);
    const auto estimate = Estimate(spec, kTwoCores);
    int64_t most = 0;  // on disk
    const auto summary = QuantizeModel(spec, checkpoint_, artifact_, [&](const Progress&) {
      int64_t bytes = 0;
      std::error_code error;
      for (const auto& file :
           std::filesystem::directory_iterator(StagingFolder(artifact_), error)) {
        bytes += static_cast<int64_t>(file.file_size());
      }
      most = std::max(most, bytes);
      return absl::OkStatus();
    });
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_GE(estimate.artifact_bytes, summary->artifact_bytes);
    EXPECT_LE(static_cast<double>(estimate.artifact_bytes),
              1.02 * static_cast<double>(summary->artifact_bytes));
    EXPECT_GE(estimate.disk_bytes, std::max(most, summary->artifact_bytes));
    EXPECT_DOUBLE_EQ(estimate.linear_bits_per_weight, summary->linear_bits_per_weight);
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(EstimateTest, ItGrowsWithWhatTheJobIsMadeOf) {
  WriteHollow(kSmolLm2, checkpoint_);
  const QuantizeSpec spec = Large();
  const auto base = Estimate(spec, kTwoCores);

  QuantizeSpec twice = spec;
  twice.calibration.windows *= 2;
  const auto longer = Estimate(twice, kTwoCores);
  // Hidden states of 576 and rotary angles of a head of 64, in f32, for each token more.
  EXPECT_EQ(longer.host_bytes - base.host_bytes, 4 * int64_t{128} * 2048 * (576 + 64));
  EXPECT_GT(longer.seconds, 1.5 * base.seconds);
  EXPECT_LT(longer.seconds, 2 * base.seconds);

  EXPECT_LT(Estimate(spec, {.device = {}, .threads = 4}).seconds, 0.6 * base.seconds);
  EXPECT_LT(Estimate(spec, kHopper).seconds, 0.1 * base.seconds);

  QuantizeSpec rounded = spec;
  rounded.method = Method::kRtn;
  rounded.calibration.corpus.clear();
  const auto rtn = Estimate(rounded, kTwoCores);
  EXPECT_LT(rtn.seconds, 0.5 * base.seconds);
  EXPECT_LT(rtn.host_bytes, base.host_bytes);
  EXPECT_EQ(rtn.artifact_bytes, base.artifact_bytes);

  QuantizeSpec low_rank = spec;
  low_rank.lorc_metric = LorcMetric::kInput;
  EXPECT_GT(Estimate(low_rank, kTwoCores).seconds, base.seconds);

  QuantizeSpec searched = spec;
  searched.scale_search = ScaleSearch::kDiagonal;
  EXPECT_GT(Estimate(searched, kTwoCores).seconds, base.seconds);
  const auto with_iterations = [&](int iterations) {
    low_rank.lorc_iterations = iterations;
    return Estimate(low_rank, kTwoCores);
  };
  // An iteration more takes as long as the one before it, and stores nothing.
  const double second = with_iterations(3).seconds - with_iterations(2).seconds;
  EXPECT_GT(second, 0);
  EXPECT_NEAR(with_iterations(8).seconds - with_iterations(3).seconds, 5 * second, 1e-6 * second);
  EXPECT_GE(with_iterations(2).host_bytes, with_iterations(1).host_bytes);
  EXPECT_EQ(with_iterations(2).artifact_bytes, with_iterations(1).artifact_bytes);
}

TEST_F(EstimateTest, TrueShapesAreToldAtOnceAndFitTheirGpu) {
  const struct {
    const char* name;
    Hollow model;
    int64_t gib;
  } cases[] = {{"7B", kLlama7b, 16}, {"13B", kLlama13b, 24}};
  for (const auto& [name, model, gib] : cases) {
    SCOPED_TRACE(name);
    WriteHollow(model, checkpoint_);
    const absl::Time began = absl::Now();
    const auto estimate = Estimate(Large(), kHopper);
    EXPECT_LT(absl::Now() - began, absl::Seconds(5));
    std::printf("LLaMA-%s: host %.2f, device %.2f, disk %.2f GiB, %.0f s\n", name,
                static_cast<double>(estimate.host_bytes) / (1 << 30),
                static_cast<double>(estimate.device_bytes) / (1 << 30),
                static_cast<double>(estimate.disk_bytes) / (1 << 30), estimate.seconds);
    EXPECT_GT(estimate.device_bytes, int64_t{2} << 30);
    EXPECT_LT(estimate.device_bytes, gib << 30);
    // 4-bit codes, half a byte of k for 256, a row's scale, LoRC, and the ends in bf16.
    EXPECT_GT(estimate.linear_bits_per_weight, 4 + 4.0 / 256);
    EXPECT_LT(estimate.linear_bits_per_weight, 4.15);
  }
}

// A budget of a quarter of the device, of half of the host.
TEST_F(EstimateTest, HiddenStatesGoWhereMemoryHoldsThem) {
  WriteHollow(kLlama7b, checkpoint_);
  const int64_t gib = int64_t{1} << 30;
  const int64_t states = int64_t{128} * 2048 * 4096 * 2;
  ASSERT_EQ(states, 2 * gib);
  const auto on = [&](int64_t host, int64_t device) {
    Place place = kHopper;
    place.host_memory = host;
    place.device_memory = device;
    return Estimate(Large(), place);
  };
  const auto roomy = on(4 * gib, 8 * gib);
  EXPECT_EQ(roomy.device_bytes, Estimate(Large(), kHopper).device_bytes);

  const auto pinned = on(4 * gib, 8 * gib - 4);
  EXPECT_EQ(pinned.device_bytes, roomy.device_bytes - states * 5 / 4);
  EXPECT_EQ(pinned.host_bytes, roomy.host_bytes + states);
  EXPECT_EQ(pinned.disk_bytes, roomy.disk_bytes);

  const auto spilled = on(4 * gib - 2, 8 * gib - 4);
  EXPECT_EQ(spilled.device_bytes, pinned.device_bytes);
  EXPECT_EQ(spilled.host_bytes, roomy.host_bytes);
  EXPECT_EQ(spilled.disk_bytes, roomy.disk_bytes + states);

  // On a CPU in f32.
  const auto whole = Estimate(Large(), kTwoCores);
  Place small = kTwoCores;
  small.host_memory = 8 * gib - 2;
  EXPECT_EQ(Estimate(Large(), small).host_bytes, whole.host_bytes - 2 * states);
  EXPECT_EQ(Estimate(Large(), small).disk_bytes, whole.disk_bytes + 2 * states);
}

TEST_F(EstimateTest, AShardThatIsGoneIsAnError) {
  WriteHollow(kSmolLm2, checkpoint_);
  std::filesystem::remove(checkpoint_ / "model.safetensors");
  const auto estimate = EstimateQuantize(Spec(), checkpoint_, kTwoCores);
  EXPECT_EQ(estimate.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
