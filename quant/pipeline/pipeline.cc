#include "quant/pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/artifact_writer.h"
#include "quant/pipeline/check.h"
#include "quant/pipeline/corpus.h"
#include "quant/pipeline/layer_quantizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Tokens of calibration windows that go through a layer at once: fixed, so that sums come out the
// same every time.
constexpr int64_t kBatchTokens = 4096;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "tokenizer.model",
                                           "vocab.json",
                                           "merges.txt",
                                           "added_tokens.json",
                                           "generation_config.json",
                                           "chat_template.jinja"};

// What a job reads of a checkpoint beside its tensors.
constexpr const char* kInputFiles[] = {"config.json", "model.safetensors.index.json",
                                       "tokenizer.json", "tokenizer_config.json",
                                       "generation_config.json"};

int64_t PeakBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// Some windows on their way through the layers.
struct CalibrationBatch {
  Batch batch;
  Rotary rotary;
  at::Tensor hidden;  // f32 [tokens, hidden]
};

std::vector<Batch> MakeBatches(const std::vector<std::vector<int32_t>>& windows) {
  std::vector<Batch> batches;
  for (const std::vector<int32_t>& window : windows) {
    const int64_t length = static_cast<int64_t>(window.size());
    if (batches.empty() ||
        static_cast<int64_t>(batches.back().tokens.size()) + length > kBatchTokens) {
      batches.emplace_back();
    }
    Batch& batch = batches.back();
    batch.segments.push_back({.first_row = static_cast<int64_t>(batch.tokens.size()),
                              .length = length,
                              .position = 0,
                              .blocks = {}});
    batch.tokens.insert(batch.tokens.end(), window.begin(), window.end());
  }
  return batches;
}

Json WeightsJson(const WeightSpec& spec) {
  return {{"format", std::string(FormatName(spec.format))},
          {"asymmetric", spec.asymmetric},
          {"group_size", spec.group_size},
          {"scale", std::string(ScaleConstraintName(spec.constraint))},
          {"m2_rounding", std::string(M2RoundingName(spec.rounding))}};
}

Json SpecJson(const QuantizeSpec& spec, const std::set<std::string>& excluded) {
  Json json = {{"lorc_rank", spec.lorc_rank},
               {"lorc_metric", spec.lorc_metric == LorcMetric::kInput ? "input" : "weight"},
               {"method", spec.method == Method::kRtn ? "rtn" : "gptq"},
               {"act_order", spec.gptq.act_order},
               {"damping", spec.gptq.damping},
               {"compute", spec.compute == Compute::kF32 ? "f32" : "bf16"},
               {"excluded", excluded}};
  if (spec.weights) json["weights"] = WeightsJson(*spec.weights);
  if (spec.activations) {
    json["activations"] = {{"format", std::string(FormatName(spec.activations->format))},
                           {"asymmetric", spec.activations->asymmetric}};
  }
  return json;
}

Json LayerJson(const LayerReport& report, bool calibrated) {
  Json linears = Json::array();
  for (const LinearReport& linear : report.linears) {
    linears.push_back({{"name", linear.name},
                       {"output_error", calibrated ? Json(linear.output_error) : Json()},
                       {"weight_error", linear.weight_error},
                       {"clamped_groups", linear.clamped_groups},
                       {"damping", linear.damping},
                       {"damping_escalations", linear.damping_escalations},
                       {"seconds", linear.seconds}});
  }
  return {{"layer", report.layer},
          {"seconds", report.seconds},
          {"peak_bytes", report.peak_bytes},
          {"linears", linears}};
}

class ModelQuantizer {
 public:
  ModelQuantizer(const QuantizeSpec& spec, const fs::path& checkpoint, const DecoderLoader& loader,
                 ArtifactWriter& writer, std::set<std::string> excluded,
                 const ProgressCallback& progress)
      : spec_(spec),
        checkpoint_(checkpoint),
        loader_(loader),
        config_(loader.config()),
        writer_(writer),
        excluded_(std::move(excluded)),
        progress_(progress) {}

  absl::StatusOr<QuantizeSummary> Run() {
    NIBBLE_RETURN_IF_ERROR(Say(Phase::kLoading));
    if (calibrates()) NIBBLE_RETURN_IF_ERROR(EmbedWindows());
    for (layer_ = 0; layer_ < config_.layers; ++layer_) NIBBLE_RETURN_IF_ERROR(RunLayerOnce());
    NIBBLE_RETURN_IF_ERROR(Say(Phase::kWriting));
    NIBBLE_RETURN_IF_ERROR(WriteRest());
    return Finish();
  }

 private:
  bool calibrates() const { return spec_.weights && !spec_.calibration.corpus.empty(); }
  double Seconds() const { return absl::ToDoubleSeconds(absl::Now() - began_); }

  absl::Status Say(Phase phase, const LayerReport* finished = nullptr) {
    return progress_({.phase = phase,
                      .layer = finished == nullptr ? layer_ : layer_ + 1,
                      .layers = config_.layers,
                      .mean_output_error = MeanError(),
                      .seconds = Seconds(),
                      .finished = finished});
  }

  double MeanError() const {
    return linears_ == 0 ? 0 : error_sum_ / static_cast<double>(linears_);
  }

  absl::Status EmbedWindows() {
    const CalibrationSpec& calibration = spec_.calibration;
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                            Tokenizer::Load(checkpoint_));
    NIBBLE_ASSIGN_OR_RETURN(
        const std::string text,
        ReadCorpus(calibration.corpus, calibration.first_text, calibration.last_text));
    NIBBLE_ASSIGN_OR_RETURN(
        const auto windows,
        CutWindows(*tokenizer, text, calibration.window_tokens, calibration.windows));
    NIBBLE_ASSIGN_OR_RETURN(const DecoderEnds ends, loader_.LoadEnds());
    for (Batch& batch : MakeBatches(windows)) {
      CalibrationBatch& made = batches_.emplace_back();
      made.batch = std::move(batch);
      made.rotary = MakeRotary(config_, made.batch);
      made.hidden = Embed(config_, ends, made.batch);
    }
    return absl::OkStatus();
  }

  // One pass with the original weights and unrounded activations, summing every group's Hessian.
  absl::StatusOr<Hessians> Calibrate(const DecoderLayer& layer) {
    Hessians hessians;
    for (const CalibrationBatch& batch : batches_) {
      NIBBLE_RETURN_IF_ERROR(Say(Phase::kCalibrating));
      RunLayer(config_, layer, batch.hidden, batch.batch, batch.rotary, nullptr,
               [&](InputGroup group, const at::Tensor& x) {
                 hessians.try_emplace(group, x.size(-1)).first->second.Accumulate(x);
               });
    }
    return hessians;
  }

  absl::Status RunLayerOnce() {
    const absl::Time began = absl::Now();
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, loader_.LoadLayer(layer_));
    NIBBLE_ASSIGN_OR_RETURN(const Hessians hessians, Calibrate(layer));
    NIBBLE_ASSIGN_OR_RETURN(
        QuantizedLayer quantized,
        QuantizeLayer(spec_, excluded_, hessians, layer, [&] { return Say(Phase::kQuantizing); }));
    for (CalibrationBatch& batch : batches_) {
      NIBBLE_RETURN_IF_ERROR(Say(Phase::kQuantizing));
      batch.hidden = RunLayer(config_, layer, batch.hidden, batch.batch, batch.rotary, nullptr);
    }
    NIBBLE_RETURN_IF_ERROR(writer_.Add(std::move(quantized.tensors)));
    return Record(std::move(quantized), absl::ToDoubleSeconds(absl::Now() - began));
  }

  absl::Status Record(QuantizedLayer quantized, double seconds) {
    linear_bits_ += quantized.bits;
    linear_weights_ += quantized.weights;
    for (const LinearReport& linear : quantized.linears) {
      done_.insert(linear.name);
      error_sum_ += linear.output_error;
      ++linears_;
    }
    const LayerReport report{layer_, std::move(quantized.linears), seconds, PeakBytes()};
    layers_json_.push_back(LayerJson(report, calibrates()));
    return Say(Phase::kQuantizing, &report);
  }

  // Everything that no linear's quantized tensors replace, in bf16.
  absl::Status WriteRest() {
    for (const std::string& name : loader_.tensors().Names()) {
      const std::string_view view = name;
      const bool weight = view.ends_with(".weight");
      if (weight && done_.contains(name.substr(0, name.size() - 7))) continue;
      // Buffers that old checkpoints carry and no forward reads; a tied head is the embedding.
      if (view.ends_with("rotary_emb.inv_freq")) continue;
      if (config_.tied_embeddings && name == "lm_head.weight") continue;
      NIBBLE_ASSIGN_OR_RETURN(const TensorView tensor, loader_.tensors().Find(name));
      at::Tensor widened = at::empty(tensor.shape, at::kFloat);
      NIBBLE_RETURN_IF_ERROR(
          WidenToFloat(name, tensor, absl::MakeSpan(widened.data_ptr<float>(), widened.numel())));
      const bool excluded = weight && excluded_.contains(name.substr(0, name.size() - 7));
      if (!excluded) rest_weights_ += widened.numel();
      std::vector<NamedTensor> one;
      one.push_back(BFloat16Tensor(name, widened));
      NIBBLE_RETURN_IF_ERROR(writer_.Add(std::move(one)));
      loader_.tensors().Release(tensor);
    }
    return writer_.FinishTensors();
  }

  QuantizeSummary Summary() const {
    QuantizeSummary summary;
    const double rest_bits = 16.0 * static_cast<double>(rest_weights_);
    if (linear_weights_ > 0) {
      summary.linear_bits_per_weight = linear_bits_ / static_cast<double>(linear_weights_);
    }
    summary.model_bits_per_weight =
        (linear_bits_ + rest_bits) / static_cast<double>(linear_weights_ + rest_weights_);
    summary.mean_output_error = MeanError();
    return summary;
  }

  absl::StatusOr<QuantizeSummary> Finish() {
    QuantizeSummary summary = Summary();
    NIBBLE_RETURN_IF_ERROR(WriteConfig());
    for (const char* name : kTokenizerFiles) {
      std::error_code error;
      if (fs::exists(checkpoint_ / name, error)) {
        NIBBLE_RETURN_IF_ERROR(writer_.CopyFile(checkpoint_ / name));
      }
    }
    NIBBLE_RETURN_IF_ERROR(writer_.WriteJson(
        "report.json",
        {{"linear_bits_per_weight", summary.linear_bits_per_weight},
         {"model_bits_per_weight", summary.model_bits_per_weight},
         {"mean_output_error", calibrates() ? Json(summary.mean_output_error) : Json()},
         {"parameters", linear_weights_ + rest_weights_},
         {"seconds", Seconds()},
         {"layers", layers_json_}}));
    NIBBLE_ASSIGN_OR_RETURN(Json manifest, Manifest());
    NIBBLE_RETURN_IF_ERROR(writer_.Commit(std::move(manifest)));
    summary.artifact_bytes = writer_.bytes();
    summary.seconds = Seconds();
    return summary;
  }

  absl::Status WriteConfig() {
    NIBBLE_ASSIGN_OR_RETURN(Json config, ReadJsonFile(checkpoint_ / "config.json"));
    Json quantization = SpecJson(spec_, excluded_);
    quantization["quant_method"] = "nibble";
    config["quantization_config"] = std::move(quantization);
    return writer_.WriteJson("config.json", config);
  }

  absl::StatusOr<Json> Manifest() {
    Json inputs = Json::object();
    for (const fs::path& file : loader_.tensors().files()) {
      NIBBLE_ASSIGN_OR_RETURN(inputs[file.filename().string()], Sha256File(file));
    }
    for (const char* name : kInputFiles) {
      std::error_code error;
      if (!fs::exists(checkpoint_ / name, error)) continue;
      NIBBLE_ASSIGN_OR_RETURN(inputs[name], Sha256File(checkpoint_ / name));
    }
    Json manifest = {{"format_version", 1},
                     {"model", checkpoint_.filename().string()},
                     {"spec", SpecJson(spec_, excluded_)},
                     {"inputs", inputs},
                     {"calibration", Json()},
                     {"versions", {{"nibble", NIBBLE_VERSION}, {"torch", TORCH_VERSION}}}};
    if (calibrates()) {
      const CalibrationSpec& calibration = spec_.calibration;
      NIBBLE_ASSIGN_OR_RETURN(const std::string corpus, Sha256File(calibration.corpus));
      manifest["calibration"] = {{"corpus", calibration.corpus.filename().string()},
                                 {"sha256", corpus},
                                 {"first_text", calibration.first_text},
                                 {"last_text", calibration.last_text},
                                 {"windows", calibration.windows},
                                 {"window", calibration.window_tokens}};
    }
    return manifest;
  }

  const QuantizeSpec& spec_;
  const fs::path& checkpoint_;
  const DecoderLoader& loader_;
  const ModelConfig& config_;
  ArtifactWriter& writer_;
  const std::set<std::string> excluded_;
  const ProgressCallback& progress_;
  const absl::Time began_ = absl::Now();
  std::vector<CalibrationBatch> batches_;
  int64_t layer_ = 0;
  std::set<std::string> done_;
  int64_t linears_ = 0;
  double error_sum_ = 0;
  double linear_bits_ = 0;
  int64_t linear_weights_ = 0;
  int64_t rest_weights_ = 0;
  Json layers_json_ = Json::array();
};

}  // namespace

absl::StatusOr<QuantizeSummary> QuantizeModel(const QuantizeSpec& spec,
                                              const std::filesystem::path& checkpoint,
                                              const std::filesystem::path& artifact,
                                              const ProgressCallback& progress) {
  return CatchTorch([&]() -> absl::StatusOr<QuantizeSummary> {
    const c10::InferenceMode inference;
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                            DecoderLoader::Open(checkpoint, spec.compute));
    NIBBLE_RETURN_IF_ERROR(CheckSpecAgainst(spec, *loader));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<LinearInfo> linears, loader->Linears());
    NIBBLE_ASSIGN_OR_RETURN(std::set<std::string> excluded, ExcludedLinears(spec.exclude, linears));
    NIBBLE_ASSIGN_OR_RETURN(ArtifactWriter writer, ArtifactWriter::Open(artifact));
    return ModelQuantizer(spec, checkpoint, *loader, writer, std::move(excluded), progress).Run();
  });
}

}  // namespace nibble
