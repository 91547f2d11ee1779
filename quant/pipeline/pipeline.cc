#include "quant/pipeline/pipeline.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <memory>
#include <set>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/base/process.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/kernels/device/torch_device.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/artifact_writer.h"
#include "quant/pipeline/calibration.h"
#include "quant/pipeline/check.h"
#include "quant/pipeline/layer_quantizer.h"
#include "quant/pipeline/layout.h"
#include "quant/pipeline/manifest.h"
#include "quant/pipeline/report.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class ModelQuantizer {
 public:
  ModelQuantizer(const QuantizeSpec& spec, const fs::path& checkpoint, const fs::path& artifact,
                 const DecoderLoader& loader, std::set<std::string> excluded,
                 const ProgressCallback& progress)
      : spec_(spec),
        checkpoint_(checkpoint),
        artifact_(artifact),
        loader_(loader),
        config_(loader.config()),
        excluded_(std::move(excluded)),
        progress_(progress) {}

  absl::StatusOr<QuantizeSummary> Run(const ArtifactLayout& layout) {
    NIBBLE_RETURN_IF_ERROR(Say(Phase::kLoading));
    NIBBLE_ASSIGN_OR_RETURN(
        Json manifest,
        MakeManifest(spec_, excluded_, checkpoint_, loader_.tensors().files(), loader_.device()));
    NIBBLE_ASSIGN_OR_RETURN(ArtifactWriter writer,
                            ArtifactWriter::Open(artifact_, std::move(manifest), layout.shards()));
    NIBBLE_RETURN_IF_ERROR(TakeOver(writer));
    NIBBLE_RETURN_IF_ERROR(QuantizeLayers(writer));
    NIBBLE_RETURN_IF_ERROR(WriteRest(layout, writer));
    return Finish(writer);
  }

 private:
  bool calibrates() const { return spec_.weights && !spec_.calibration.corpus.empty(); }
  double Seconds() const { return absl::ToDoubleSeconds(absl::Now() - began_); }

  absl::Status Say(Phase phase, const LayerReport* finished = nullptr, std::string note = "") {
    Progress progress{.phase = phase,
                      .layer = layer_,
                      .layers = config_.layers,
                      .mean_output_error = report_.MeanOutputError(),
                      .seconds = Seconds(),
                      .seconds_left = std::nullopt,
                      .finished = finished,
                      .note = std::move(note)};
    if (layer_ > 0) {
      progress.seconds_left =
          report_.MeanLayerSeconds() * static_cast<double>(config_.layers - layer_);
    }
    return progress_(progress);
  }

  // The layers that an earlier attempt has finished count as this one's.
  absl::Status TakeOver(const ArtifactWriter& writer) {
    if (!writer.discarded().empty()) {
      NIBBLE_RETURN_IF_ERROR(
          Say(Phase::kLoading, nullptr,
              StrCat("started anew, what an earlier attempt has left can't be used: ",
                     writer.discarded())));
    }
    if (writer.layers().empty()) return absl::OkStatus();
    for (const FinishedLayer& layer : writer.layers()) report_.AddLayer(layer.report);
    layer_ = static_cast<int64_t>(writer.layers().size());
    NIBBLE_RETURN_IF_ERROR(
        Say(Phase::kLoading, nullptr, StrCat("resumed at layer ", layer_, " of ", config_.layers)));
    for (const FinishedLayer& layer : writer.layers()) {
      NIBBLE_RETURN_IF_ERROR(Say(Phase::kLoading, &layer.report));
    }
    return absl::OkStatus();
  }

  absl::Status QuantizeLayers(ArtifactWriter& writer) {
    if (layer_ == config_.layers) return absl::OkStatus();
    if (calibrates()) {
      NIBBLE_ASSIGN_OR_RETURN(calibration_, Calibration::Embed(spec_.calibration, checkpoint_,
                                                               loader_, StagingFolder(artifact_)));
      if (const StatesPlace place = calibration_.states_place(); place != StatesPlace::kDevice) {
        NIBBLE_RETURN_IF_ERROR(
            Say(Phase::kLoading, nullptr, StrCat("hidden states lie in ", StatesPlaceName(place))));
      }
      for (const FinishedLayer& layer : writer.layers()) {
        NIBBLE_RETURN_IF_ERROR(PassThrough(layer, writer));
      }
    }
    while (layer_ < config_.layers) NIBBLE_RETURN_IF_ERROR(QuantizeOneLayer(writer));
    return absl::OkStatus();
  }

  // Takes the hidden states through a layer that an earlier attempt has quantized.
  absl::Status PassThrough(const FinishedLayer& finished, const ArtifactWriter& writer) {
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, loader_.LoadLayer(finished.report.layer));
    if (!finished.shard.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(const auto tensors, writer.LayerTensors(finished));
      NIBBLE_RETURN_IF_ERROR(RestoreLayer(spec_, excluded_, *tensors, layer));
    }
    return calibration_.Advance(config_, layer, [&] { return Say(Phase::kLoading); });
  }

  absl::Status QuantizeOneLayer(ArtifactWriter& writer) {
    const absl::Time began = absl::Now();
    NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, loader_.LoadLayer(layer_));
    NIBBLE_ASSIGN_OR_RETURN(const Hessians hessians, calibration_.Accumulate(config_, layer, [&] {
      return Say(Phase::kCalibrating);
    }));
    const Step step = [&] { return Say(Phase::kQuantizing); };
    NIBBLE_ASSIGN_OR_RETURN(QuantizedLayer quantized,
                            QuantizeLayer(spec_, excluded_, hessians, layer, step));
    NIBBLE_RETURN_IF_ERROR(calibration_.Advance(config_, layer, step));
    const LayerReport report{.layer = layer_,
                             .linears = std::move(quantized.linears),
                             .weights = quantized.weights,
                             .bits = quantized.bits,
                             .seconds = absl::ToDoubleSeconds(absl::Now() - began),
                             .peak_host_bytes = PeakResidentBytes(),
                             .peak_device_bytes = PeakDeviceBytes(loader_.device())};
    NIBBLE_RETURN_IF_ERROR(writer.FinishLayer(report, quantized.tensors));
    report_.AddLayer(report);
    ++layer_;
    return Say(Phase::kQuantizing, &report);
  }

  // Everything that no linear's quantized tensors replace, in bf16.
  absl::Status WriteRest(const ArtifactLayout& layout, ArtifactWriter& writer) {
    for (const std::vector<RestTensor>& tensors : layout.rest) {
      NIBBLE_RETURN_IF_ERROR(Say(Phase::kWriting));
      std::vector<NamedTensor> shard;
      for (const RestTensor& tensor : tensors) {
        NIBBLE_ASSIGN_OR_RETURN(shard.emplace_back(), ReadRest(tensor.name));
      }
      NIBBLE_RETURN_IF_ERROR(writer.WriteShard(shard));
    }
    return writer.WriteIndex();
  }

  absl::StatusOr<NamedTensor> ReadRest(const std::string& name) {
    NIBBLE_ASSIGN_OR_RETURN(NamedTensor tensor, loader_.ReadBFloat16(name));
    // An excluded linear is counted with its layer.
    const std::string stem = name.substr(0, name.rfind('.'));
    if (!name.ends_with(".weight") || !excluded_.contains(stem))
      report_.AddRest(static_cast<int64_t>(tensor.bytes.size()) / 2);
    return tensor;
  }

  absl::StatusOr<QuantizeSummary> Finish(ArtifactWriter& writer) {
    NIBBLE_ASSIGN_OR_RETURN(Json config, ReadJsonFile(checkpoint_ / "config.json"));
    if (spec_.rotate_seed) config["tie_word_embeddings"] = false;
    config["quantization_config"] = SpecJson(spec_, excluded_);
    config["quantization_config"]["quant_method"] = "nibble";
    NIBBLE_RETURN_IF_ERROR(writer.WriteJson("config.json", config));
    for (const fs::path& file : TokenizerFiles(checkpoint_)) {
      NIBBLE_RETURN_IF_ERROR(writer.CopyFile(file));
    }
    NIBBLE_RETURN_IF_ERROR(writer.WriteJson("report.json", report_.ToJson(Seconds())));
    QuantizeSummary summary = report_.Summary();
    NIBBLE_ASSIGN_OR_RETURN(summary.artifact_bytes, writer.Commit());
    summary.seconds = Seconds();
    return summary;
  }

  const QuantizeSpec& spec_;
  const fs::path& checkpoint_;
  const fs::path& artifact_;
  const DecoderLoader& loader_;
  const ModelConfig& config_;
  const std::set<std::string> excluded_;
  const ProgressCallback& progress_;
  const absl::Time began_ = absl::Now();
  Calibration calibration_;
  ModelReport report_;
  int64_t layer_ = 0;  // layers finished
};

}  // namespace

absl::StatusOr<QuantizeSummary> QuantizeModel(const QuantizeSpec& spec,
                                              const std::filesystem::path& checkpoint,
                                              const std::filesystem::path& artifact,
                                              const ProgressCallback& progress,
                                              const Device& device) {
  return CatchTorch([&]() -> absl::StatusOr<QuantizeSummary> {
    const c10::InferenceMode inference;
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                            DecoderLoader::Open(checkpoint, spec.compute, device));
    NIBBLE_RETURN_IF_ERROR(CheckSpecAgainst(spec, *loader));
    if (spec.rotate_seed) NIBBLE_RETURN_IF_ERROR(loader->Rotate(*spec.rotate_seed));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<LinearInfo> linears, loader->Linears());
    NIBBLE_ASSIGN_OR_RETURN(std::set<std::string> excluded, ExcludedLinears(spec.exclude, linears));
    const ArtifactLayout layout =
        PlanArtifact(loader->config(), loader->tensors(), linears, excluded);
    return ModelQuantizer(spec, checkpoint, artifact, *loader, std::move(excluded), progress)
        .Run(layout);
  });
}

}  // namespace nibble
