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
#include "quant/pipeline/calibration.h"
#include "quant/pipeline/check.h"
#include "quant/pipeline/layer_quantizer.h"
#include "quant/pipeline/report.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

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
    if (calibrates()) {
      NIBBLE_ASSIGN_OR_RETURN(calibration_,
                              Calibration::Embed(spec_.calibration, checkpoint_, loader_));
    }
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
                      .mean_output_error = report_.MeanOutputError(),
                      .seconds = Seconds(),
                      .finished = finished});
  }

  absl::Status RunLayerOnce() {
    const absl::Time began = absl::Now();
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, loader_.LoadLayer(layer_));
    NIBBLE_ASSIGN_OR_RETURN(const Hessians hessians, calibration_.Accumulate(config_, layer, [&] {
      return Say(Phase::kCalibrating);
    }));
    const Step step = [&] { return Say(Phase::kQuantizing); };
    NIBBLE_ASSIGN_OR_RETURN(QuantizedLayer quantized,
                            QuantizeLayer(spec_, excluded_, hessians, layer, step));
    NIBBLE_RETURN_IF_ERROR(calibration_.Advance(config_, layer, step));
    NIBBLE_RETURN_IF_ERROR(writer_.Add(std::move(quantized.tensors)));
    return Record(std::move(quantized), absl::ToDoubleSeconds(absl::Now() - began));
  }

  absl::Status Record(QuantizedLayer quantized, double seconds) {
    for (const LinearReport& linear : quantized.linears) done_.insert(linear.name);
    const LayerReport report{layer_, std::move(quantized.linears), seconds, PeakBytes()};
    report_.AddLayer(report, quantized.weights, quantized.bits);
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
      if (!excluded) report_.AddRest(widened.numel());
      std::vector<NamedTensor> one;
      one.push_back(BFloat16Tensor(name, widened));
      NIBBLE_RETURN_IF_ERROR(writer_.Add(std::move(one)));
      loader_.tensors().Release(tensor);
    }
    return writer_.FinishTensors();
  }

  absl::StatusOr<QuantizeSummary> Finish() {
    QuantizeSummary summary = report_.Summary();
    NIBBLE_RETURN_IF_ERROR(WriteConfig());
    for (const char* name : kTokenizerFiles) {
      std::error_code error;
      if (fs::exists(checkpoint_ / name, error)) {
        NIBBLE_RETURN_IF_ERROR(writer_.CopyFile(checkpoint_ / name));
      }
    }
    NIBBLE_RETURN_IF_ERROR(writer_.WriteJson("report.json", report_.ToJson(Seconds())));
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
  Calibration calibration_;
  ModelReport report_{calibrates()};
  int64_t layer_ = 0;
  std::set<std::string> done_;
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
