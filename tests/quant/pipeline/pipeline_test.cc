// Whole jobs over a tiny random LLaMA: what they write, what they report, how they stop.
#include "quant/pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>

#include <fstream>
#include <numeric>

#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/decoder/decoder.h"
#include "tests/fixtures/artifacts.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHidden = 64, kKvWidth = 32, kMlp = 128, kVocab = 256, kLayers = 2;
constexpr int64_t kLinearWeights =
    2 * kHidden * kHidden + 2 * kKvWidth * kHidden + 3 * kHidden * kMlp;

class PipelineTest : public testing::Test {
 protected:
  PipelineTest() : checkpoint_(folder_.path() / "tiny"), artifact_(folder_.path() / "a" / "out") {
    EXPECT_TRUE(WriteTinyLlama({.layers = kLayers}, checkpoint_).ok());
    std::ofstream corpus(folder_.path() / "c.txt");
    // Words that come again and again, so that inputs are correlated.
    for (int i = 0; i < 600; ++i) corpus << "word" << (i * i) % 37 << ' ';
    corpus.close();
    spec_.weights = WeightSpec{.format = Format::kE2M1, .group_size = 32};
    spec_.activations = ActivationSpec{.format = Format::kE4M3};
    spec_.calibration = {.corpus = folder_.path() / "c.txt", .windows = 8, .window_tokens = 64};
  }

  absl::StatusOr<QuantizeSummary> Run(const QuantizeSpec& spec) {
    return QuantizeModel(spec, checkpoint_, artifact_,
                         [](const Progress&) { return absl::OkStatus(); });
  }
  // Of a run whose artifact is not kept.
  QuantizeSummary Summary(const QuantizeSpec& spec) {
    const auto summary = Run(spec);
    EXPECT_TRUE(summary.ok()) << summary.status();
    std::filesystem::remove_all(artifact_);
    return summary.value_or(QuantizeSummary{});
  }
  Json ReadJson(const std::string& name) { return ReadJsonFile(artifact_ / name).value(); }
  bool NothingLeft() {
    return !std::filesystem::exists(artifact_.parent_path()) ||
           std::filesystem::is_empty(artifact_.parent_path());
  }
  static at::Tensor LogitsOf(const std::filesystem::path& model) {
    const c10::InferenceMode inference;
    const auto decoder = Decoder::Load(model, Compute::kF32).value();
    Batch batch;
    for (int32_t i = 0; i < 40; ++i) batch.tokens.push_back(i * 5 % kVocab);
    batch.segments = {{.first_row = 0, .length = 40, .position = 0, .blocks = {}}};
    std::vector<int64_t> rows(40);
    std::iota(rows.begin(), rows.end(), 0);
    return decoder->Logits(decoder->Forward(batch, nullptr), rows);
  }

  TempFolder folder_;
  std::filesystem::path checkpoint_;
  std::filesystem::path artifact_;
  QuantizeSpec spec_;
};

TEST_F(PipelineTest, TheReportCountsWhatIsStored) {
  spec_.lorc_rank = 2;
  std::vector<LayerReport> layers;
  double last_error = 0;
  const auto summary = QuantizeModel(spec_, checkpoint_, artifact_, [&](const Progress& progress) {
    if (progress.finished != nullptr) layers.push_back(*progress.finished);
    EXPECT_EQ(progress.layers, kLayers);
    last_error = progress.mean_output_error;
    return absl::OkStatus();
  });
  ASSERT_TRUE(summary.ok()) << summary.status();
  // Per group of 32: 4-bit codes and half a byte of k; a row scale of 32 bits; LoRC of 2 (N + K)
  // bf16. Shapes 64x64 (q, o), 32x64 (k, v), 128x64 (gate, up), 64x128 (down).
  const double rows = 2 * kHidden + 2 * kKvWidth + 2 * kMlp + kHidden;
  const double lorc =
      2.0 * 16 * (2 * (kHidden + kHidden) + 2 * (kKvWidth + kHidden) + 3 * (kMlp + kHidden));
  const double bits = kLinearWeights * (4 + 4.0 / 32) + 32 * rows + lorc;
  EXPECT_DOUBLE_EQ(summary->linear_bits_per_weight, bits / kLinearWeights);
  const double rest = kVocab * kHidden + kHidden * (2 * kLayers + 1);
  EXPECT_DOUBLE_EQ(summary->model_bits_per_weight,
                   (kLayers * bits + 16 * rest) / (kLayers * kLinearWeights + rest));

  ASSERT_EQ(layers.size(), static_cast<size_t>(kLayers));
  double sum = 0;
  for (const LayerReport& layer : layers) {
    EXPECT_EQ(layer.linears.size(), 7u);
    for (const LinearReport& linear : layer.linears) {
      EXPECT_GT(linear.output_error, 0) << linear.name;
      EXPECT_LT(linear.output_error, 0.1) << linear.name;
      sum += linear.output_error.value();
    }
  }
  EXPECT_DOUBLE_EQ(summary->mean_output_error, sum / (7 * kLayers));
  EXPECT_DOUBLE_EQ(last_error, summary->mean_output_error);
  const Json report = ReadJson("report.json");
  EXPECT_EQ(report["parameters"], kLayers * kLinearWeights + rest);
  EXPECT_EQ(report["layers"][1]["linears"][0]["name"], "model.layers.1.self_attn.q_proj");
  int64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(artifact_)) bytes += file.file_size();
  EXPECT_EQ(summary->artifact_bytes, bytes);
}

TEST_F(PipelineTest, TheManifestNamesInputsAndFilesByTheirSums) {
  ASSERT_TRUE(Run(spec_).ok());
  const Json manifest = ReadJson("nibble.json");
  EXPECT_EQ(manifest["model"], "tiny");
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    EXPECT_EQ(manifest["inputs"][name], Sha256File(checkpoint_ / name).value()) << name;
  }
  EXPECT_EQ(manifest["calibration"]["sha256"], Sha256File(spec_.calibration.corpus).value());
  EXPECT_EQ(manifest["calibration"]["windows"], 8);
  size_t files = 0;
  for (const auto& file : std::filesystem::directory_iterator(artifact_)) {
    const std::string name = file.path().filename().string();
    if (name == "nibble.json") continue;
    ++files;
    EXPECT_EQ(manifest["files"][name], Sha256File(file.path()).value()) << name;
  }
  EXPECT_EQ(manifest["files"].size(), files);
  EXPECT_EQ(ReadJson("config.json")["quantization_config"]["quant_method"], "nibble");
  EXPECT_TRUE(std::filesystem::exists(artifact_ / "tokenizer.json"));
  EXPECT_EQ(ReadArtifact(artifact_, Verify::kChecksums).value().weights->group_size, 32);

  std::ofstream(artifact_ / "tokenizer.json", std::ios::app) << ' ';
  const auto status = ReadArtifact(artifact_, Verify::kChecksums).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("tokenizer.json"));
}

TEST_F(PipelineTest, TheSameJobGivesTheSameBytes) {
  spec_.lorc_rank = 2;
  const auto content = [&] {
    EXPECT_TRUE(Run(spec_).ok());
    Json made = ArtifactContent(artifact_);
    std::filesystem::remove_all(artifact_);
    return made;
  };
  EXPECT_EQ(content(), content());
}

TEST_F(PipelineTest, GptqErrsLessThanRtnAndLorcLessThanNone) {
  const double gptq = Summary(spec_).mean_output_error;
  QuantizeSpec rtn = spec_;
  rtn.method = Method::kRtn;
  const double rounded = Summary(rtn).mean_output_error;
  EXPECT_LT(gptq, 0.8 * rounded);
  QuantizeSpec lorc = spec_;
  lorc.lorc_rank = 8;
  lorc.lorc_metric = LorcMetric::kInput;
  EXPECT_LT(Summary(lorc).mean_output_error, gptq);
  QuantizeSpec eight = spec_;
  eight.weights->format = Format::kInt8;
  EXPECT_LT(Summary(eight).mean_output_error, 0.05 * gptq);
}

// Nothing is calibrated: columns count alike, and the weights' error is what falls.
TEST_F(PipelineTest, ScaleSearchAndIterationsNeedNoCorpus) {
  spec_.method = Method::kRtn;
  spec_.calibration.corpus.clear();
  spec_.lorc_rank = 4;
  const auto errors = [&] {
    std::vector<double> found;
    const auto summary = QuantizeModel(spec_, checkpoint_, artifact_, [&](const Progress& p) {
      if (p.finished == nullptr) return absl::OkStatus();
      for (const LinearReport& linear : p.finished->linears) found.push_back(linear.weight_error);
      return absl::OkStatus();
    });
    EXPECT_TRUE(summary.ok()) << summary.status();
    std::filesystem::remove_all(artifact_);
    return found;
  };
  const std::vector<double> plain = errors();
  spec_.scale_search = ScaleSearch::kDiagonal;
  const std::vector<double> searched = errors();
  spec_.lorc_iterations = 3;
  const std::vector<double> iterated = errors();
  ASSERT_EQ(plain.size(), 7u * kLayers);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_LT(searched[i], plain[i]) << i;
    EXPECT_LE(iterated[i], searched[i]) << i;
  }
}

// The first layer's inputs are the same in every job.
TEST_F(PipelineTest, IterationsKeepTheLeastOutputError) {
  const auto first_layer = [&](LorcMetric metric, int iterations) {
    spec_.lorc_rank = 4;
    spec_.lorc_metric = metric;
    spec_.lorc_iterations = iterations;
    std::vector<double> errors;
    const auto stop = [&](const Progress& progress) {
      if (progress.finished == nullptr) return absl::OkStatus();
      for (const LinearReport& linear : progress.finished->linears) {
        errors.push_back(linear.output_error.value());
      }
      return absl::CancelledError("enough");
    };
    EXPECT_TRUE(absl::IsCancelled(QuantizeModel(spec_, checkpoint_, artifact_, stop).status()));
    EXPECT_TRUE(RemoveStaging(artifact_).ok());
    return errors;
  };
  for (const LorcMetric metric : {LorcMetric::kWeight, LorcMetric::kInput}) {
    std::vector<double> last = first_layer(metric, 1);
    const double once = std::accumulate(last.begin(), last.end(), 0.0);
    for (const int iterations : {2, 3}) {
      const std::vector<double> next = first_layer(metric, iterations);
      ASSERT_EQ(next.size(), 7u);
      for (size_t i = 0; i < next.size(); ++i) EXPECT_LE(next[i], last[i]) << i;
      last = next;
    }
    EXPECT_LT(std::accumulate(last.begin(), last.end(), 0.0), once);
  }
}

TEST_F(PipelineTest, SearchedAndIteratedIsRecordedAndReadBack) {
  spec_.scale_search = ScaleSearch::kDiagonal;
  spec_.lorc_rank = 4;
  spec_.lorc_metric = LorcMetric::kInput;
  spec_.lorc_iterations = 3;
  ASSERT_TRUE(Run(spec_).ok());
  for (const Json& spec :
       {ReadJson("nibble.json")["spec"], ReadJson("config.json")["quantization_config"]}) {
    EXPECT_EQ(spec["scale_search"], "diagonal");
    EXPECT_EQ(spec["lorc_iterations"], 3);
  }
  const at::Tensor original = LogitsOf(checkpoint_);
  const double difference =
      ((LogitsOf(artifact_) - original).norm() / original.norm()).item<double>();
  EXPECT_GT(difference, 0);
  spec_.scale_search = ScaleSearch::kNone;
  spec_.lorc_rank = 0;
  spec_.lorc_iterations = 1;
  std::filesystem::remove_all(artifact_);
  ASSERT_TRUE(Run(spec_).ok());
  EXPECT_LT(difference, ((LogitsOf(artifact_) - original).norm() / original.norm()).item<double>());
}

TEST_F(PipelineTest, WeightsLeftAloneGiveTheModelItself) {
  spec_.weights.reset();
  spec_.activations = ActivationSpec{.format = Format::kInt8, .asymmetric = true};
  spec_.calibration.corpus.clear();
  ASSERT_TRUE(Run(spec_).ok());
  const at::Tensor original = LogitsOf(checkpoint_);
  const at::Tensor made = LogitsOf(artifact_);
  // bf16 weights and 8-bit activations: within a few parts in a hundred, and not the same.
  const double difference = ((made - original).norm() / original.norm()).item<double>();
  EXPECT_LT(difference, 0.05);
  EXPECT_GT(difference, 0);
}

TEST_F(PipelineTest, ExcludedLinearsStayAndCount) {
  spec_.exclude = {"model.layers.0.*", "*.down_proj"};
  const auto summary = Run(spec_);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto tensors = TensorSource::Open(artifact_).value();
  EXPECT_TRUE(tensors->Contains("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_TRUE(tensors->Contains("model.layers.1.mlp.down_proj.weight"));
  EXPECT_FALSE(tensors->Contains("model.layers.1.mlp.up_proj.weight"));
  EXPECT_TRUE(tensors->Contains("model.layers.1.mlp.up_proj.weight_codes"));
  const double down = kHidden * kMlp;
  const double rows = 2 * kHidden + 2 * kKvWidth + 2 * kMlp;
  const double bits =
      16 * (kLinearWeights + down) + (kLinearWeights - down) * (4 + 4.0 / 32) + 32 * rows;
  EXPECT_DOUBLE_EQ(summary->linear_bits_per_weight, bits / (2 * kLinearWeights));
  EXPECT_TRUE(Decoder::Load(artifact_, Compute::kF32).ok());
}

// As OpenLLaMA-3b's: neither width is a multiple of the group.
TEST_F(PipelineTest, TheLastGroupOfARowMayBeShort) {
  checkpoint_ = folder_.path() / "odd";
  ASSERT_TRUE(
      WriteTinyLlama({.hidden = 72, .layers = 1, .heads = 6, .kv_heads = 3, .intermediate = 100},
                     checkpoint_)
          .ok());
  const at::Tensor original = LogitsOf(checkpoint_);
  for (const int group : {16, 32, 64, 128, kWholeRow}) {
    spec_.weights = WeightSpec{.format = Format::kInt8, .group_size = group};
    const auto summary = Run(spec_);
    ASSERT_TRUE(summary.ok()) << summary.status();
    const auto groups = [&](int64_t cols) { return GroupCount(cols, group); };
    // q, o: 72 x 72; k, v: 36 x 72; gate, up: 100 x 72; down: 72 x 100. k takes whole bytes a row.
    const int64_t rows_72 = 2 * 72 + 2 * 36 + 2 * 100;
    const int64_t weights = rows_72 * 72 + 72 * 100;
    const int64_t bits = 8 * weights + rows_72 * (32 + 8 * ((groups(72) + 1) / 2)) +
                         72 * (32 + 8 * ((groups(100) + 1) / 2));
    EXPECT_DOUBLE_EQ(summary->linear_bits_per_weight, static_cast<double>(bits) / weights) << group;
    const double difference =
        ((LogitsOf(artifact_) - original).norm() / original.norm()).item<double>();
    // INT8 weights under M2 and E4M3 activations.
    EXPECT_LT(difference, 0.1) << group;
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(PipelineTest, WhatCannotWorkIsRefusedByField) {
  const auto refuse = [&](const std::function<void(QuantizeSpec&)>& change,
                          const std::string& words) {
    QuantizeSpec spec = spec_;
    change(spec);
    const absl::Status checked = CheckQuantizeSpec(spec, checkpoint_);
    EXPECT_EQ(checked.code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(checked.message(), HasSubstr(words));
    EXPECT_EQ(Run(spec).status(), checked);
    EXPECT_TRUE(NothingLeft()) << words;
  };
  refuse([](auto& s) { s.weights->group_size = 0; }, "group_size: found 0");
  refuse([](auto& s) { s.lorc_rank = 33; }, "lorc_rank: found 33, expected at most 32");
  refuse([](auto& s) { s.lorc_iterations = 0; }, "lorc_iterations: found 0, expected 1 to 16");
  refuse([](auto& s) { s.lorc_iterations = 17; }, "lorc_iterations: found 17, expected 1 to 16");
  refuse([](auto& s) { s.lorc_iterations = 2; }, "lorc_iterations: found 2 with lorc_rank 0");
  refuse(
      [](auto& s) {
        s.scale_search = ScaleSearch::kDiagonal;
        s.gptq.act_order = false;
      },
      "scale_search: found diagonal with act_order false, expected none");
  refuse(
      [](auto& s) {
        s.scale_search = ScaleSearch::kDiagonal;
        s.weights = WeightSpec{
            .format = Format::kInt4, .asymmetric = true, .constraint = ScaleConstraint::kNone};
      },
      "scale_search: found diagonal with weights_asymmetric true, expected none");
  refuse(
      [](auto& s) {
        s.scale_search = ScaleSearch::kDiagonal;
        s.weights.reset();
      },
      "scale_search: found diagonal with weights none, expected none");
  refuse([](auto& s) { s.exclude = {"*.nothing"}; }, "exclude: found '*.nothing'");
  refuse([](auto& s) { s.exclude = {"*"}; }, "exclude: found patterns that meet every linear");
  refuse([](auto& s) { s.calibration.corpus.clear(); }, "corpus: found none");
  refuse([](auto& s) { s.calibration.window_tokens = 129; }, "window: found 129");
  refuse([](auto& s) { s.calibration.windows = 0; }, "windows: found 0");
  refuse([](auto& s) { s.weights->asymmetric = true; }, "weights_asymmetric: found true");
  refuse(
      [](auto& s) {
        s.weights.reset();
        s.activations.reset();
      },
      "weights: found none");
}

TEST_F(PipelineTest, ABadWeightIsNamed) {
  // One NaN in the first layer's up_proj.
  const auto tensors = TensorSource::Open(checkpoint_).value();
  std::vector<NamedTensor> broken;
  for (const std::string& name : tensors->Names()) {
    const TensorView view = tensors->Find(name).value();
    broken.push_back({name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}});
    if (name == "model.layers.0.mlp.up_proj.weight") broken.back().bytes[3] = 0x7f;
    if (name == "model.layers.0.mlp.up_proj.weight") broken.back().bytes[2] = 0xc0;
  }
  const std::filesystem::path copy = folder_.path() / "broken";
  std::filesystem::copy(checkpoint_, copy);
  ASSERT_TRUE(WriteSafetensors(copy / "model.safetensors", broken).ok());
  spec_.method = Method::kRtn;
  spec_.calibration.corpus.clear();
  const auto status = QuantizeModel(spec_, copy, artifact_, [](const Progress&) {
                        return absl::OkStatus();
                      }).status();
  EXPECT_THAT(status.message(), HasSubstr("model.layers.0.mlp.up_proj"));
}

}  // namespace
}  // namespace nibble
