#include "quant/model/cuda/cuda_decoder.h"

#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/device/devices.h"
#include "quant/kernels/device/launch.h"
#include "quant/kernels/device/torch_device.h"
#include "quant/model/cuda/cuda_model.h"
#include "quant/model/cuda/decode_graphs.h"

namespace nibble {
namespace {

// Left for graphs and for what libraries take beside LibTorch's allocator.
constexpr int64_t kReserve = int64_t{1} << 30;

int64_t FreeBytes() {
  size_t free = 0;
  size_t total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

class Impl : public CudaDecoder {
 public:
  Impl(const CudaDecoderOptions& options, CudaModel model)
      : options_(options),
        model_(std::move(model)),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, model_.device.index())),
        workspace_(at::zeros({static_cast<int64_t>(model_.WorkspaceBytes(options.max_tokens))},
                             at::TensorOptions(at::kByte).device(model_.device))) {
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    facts_.weight_bytes = model_.weight_bytes();
    facts_.block_size = static_cast<int32_t>(kKvBlockSize);
    std::tie(facts_.true_value_groups, facts_.groups) = model_.true_value_groups();
  }

  // Runs the largest step over a cache of one block, so that what it needs is taken; the rest is
  // the cache's.
  absl::Status Prepare() {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    const KvFormat format = options_.e4m3_cache ? KvFormat::kE4M3 : KvFormat::kBf16;
    cache_ = MakeCudaCache(model_, format, 1);
    NIBBLE_RETURN_IF_ERROR(WarmUp());
    NIBBLE_ASSIGN_OR_RETURN(const int64_t blocks, BlocksThatFit(format));
    cache_ = {};
    cache_ = MakeCudaCache(model_, format, blocks);
    facts_.blocks = static_cast<int32_t>(blocks);
    facts_.cache_bytes = blocks * CudaBlockBytes(model_.config, format);
    Synchronize();
    const int64_t before = FreeBytes();
    NIBBLE_ASSIGN_OR_RETURN(
        graphs_, DecodeGraphs::Capture(model_, cache_, workspace_, options_.max_sequences));
    Synchronize();
    facts_.graphs = static_cast<int64_t>(graphs_->size());
    facts_.graph_bytes = before - FreeBytes();
    return absl::OkStatus();
  }

  const Facts& facts() const override { return facts_; }
  const ModelConfig& config() const override { return model_.config; }

  absl::Status Run(absl::Span<const CudaSequence> sequences,
                   std::vector<int32_t>& tokens) override {
    return CatchTorch([&]() -> absl::Status {
      const c10::InferenceMode inference;
      const c10::cuda::CUDAStreamGuard on_stream(stream_);
      NIBBLE_RETURN_IF_ERROR(Check(sequences));
      NIBBLE_ASSIGN_OR_RETURN(DecodeGraph* const graph, graphs_->Plan(sequences));
      if (graph == nullptr) return RunEagerly(sequences, tokens);
      graph->graph.replay();
      Synchronize();
      states_ = graph->states;
      std::vector<size_t> order(sequences.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      first_row_.assign(order.begin(), order.end());
      return Take(sequences, order, graph->tokens.const_data_ptr<int32_t>(), /*drew_all=*/true,
                  tokens);
    });
  }

  absl::Status Logits(absl::Span<const Row> rows, std::vector<float>& out) override {
    return CatchTorch([&]() -> absl::Status {
      const c10::InferenceMode inference;
      const c10::cuda::CUDAStreamGuard on_stream(stream_);
      std::vector<int64_t> indices;
      for (const Row& row : rows) {
        indices.push_back(static_cast<int64_t>(first_row_.at(row.sequence)) + row.token);
      }
      const at::Tensor states =
          states_.index_select(0, at::tensor(indices, at::kLong).to(model_.device));
      const at::Tensor logits = HeadLogits(model_, states)
                                    .narrow(1, 0, model_.config.vocab)
                                    .to(at::kFloat)
                                    .cpu()
                                    .contiguous();
      out.assign(logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel());
      return absl::OkStatus();
    });
  }

 private:
  void Synchronize() const { C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream())); }

  absl::Status Check(absl::Span<const CudaSequence> sequences) const {
    int64_t tokens = 0;
    for (const CudaSequence& sequence : sequences) {
      tokens += static_cast<int64_t>(sequence.tokens.size());
      if (sequence.tokens.empty()) {
        return absl::InvalidArgumentError("step: found a sequence of 0 tokens, expected 1 or more");
      }
    }
    if (tokens >= 1 && tokens <= options_.max_tokens) return absl::OkStatus();
    return absl::InvalidArgumentError(
        StrCat("step: found ", tokens, " tokens, expected 1 to ", options_.max_tokens));
  }

  absl::Status RunEagerly(absl::Span<const CudaSequence> sequences, std::vector<int32_t>& tokens) {
    const StepLimits limits = LimitsOf(model_.attention_shape(), sequences);
    std::vector<int32_t> image(StepImage(limits).end);
    NIBBLE_ASSIGN_OR_RETURN(const StepPlan plan,
                            PlanStep(limits, sequences, absl::MakeSpan(image)));
    const at::Tensor on_device = at::tensor(image, at::kInt).to(model_.device);
    const CudaStep step = {.plan = plan, .image = on_device.const_data_ptr<int32_t>()};
    states_ = RunStep(model_, step, cache_, workspace_);
    const std::vector<size_t> order = BatchOrder(sequences);
    first_row_.assign(sequences.size(), 0);
    size_t row = 0;
    for (const size_t index : order) {
      first_row_[index] = row;
      row += sequences[index].tokens.size();
    }
    at::Tensor drawn = at::empty({0}, at::kInt);
    if (plan.draws > 0) {
      const at::Tensor rows = on_device.narrow(0, StepImage(limits).draw_rows, plan.draws);
      drawn = DrawTokens(model_, step, HeadLogits(model_, states_.index_select(0, rows))).cpu();
    }
    Synchronize();
    return Take(sequences, order, drawn.const_data_ptr<int32_t>(), /*drew_all=*/false, tokens);
  }

  // `drawn`: in the batch's order, of all sequences or of those that sample.
  static absl::Status Take(absl::Span<const CudaSequence> sequences,
                           const std::vector<size_t>& order, const int32_t* drawn, bool drew_all,
                           std::vector<int32_t>& tokens) {
    tokens.assign(sequences.size(), -1);
    for (const size_t index : order) {
      const bool sample = sequences[index].sample;
      if (!sample && !drew_all) continue;
      const int32_t token = *drawn++;
      if (!sample) continue;
      if (token < 0) {
        return absl::InternalError("logits: found NaN or infinities, expected finite numbers");
      }
      tokens[index] = token;
    }
    return absl::OkStatus();
  }

  absl::Status WarmUp() {
    const int64_t count = std::min(options_.max_tokens, model_.config.context);
    const std::vector<int32_t> ids(count, 0);
    const std::vector<int32_t> blocks((count + kKvBlockSize - 1) / kKvBlockSize, 0);
    std::vector<int32_t> tokens;
    NIBBLE_RETURN_IF_ERROR(
        RunEagerly({{{.tokens = ids, .blocks = blocks, .sample = true}}}, tokens));
    std::vector<float> logits;
    return Logits(std::vector<Row>(kLogitRows), logits);
  }

  absl::StatusOr<int64_t> BlocksThatFit(KvFormat format) const {
    const int64_t block = CudaBlockBytes(model_.config, format);
    int64_t room = options_.kv_bytes;
    if (room == 0) {
      const int64_t total = DeviceBytes(options_.device);
      const int64_t others = total - FreeBytes();  // weights, work, and other processes' memory
      room = static_cast<int64_t>(options_.memory_fraction * static_cast<double>(total)) - others -
             kReserve;
    }
    const int64_t blocks = std::min<int64_t>(room / block, INT32_MAX / kKvBlockSize);
    if (room > 0 && blocks > 0) return blocks;
    return absl::ResourceExhaustedError(StrCat("KV cache: found room for ", room,
                                               " bytes, expected at least the ", block,
                                               " of one block of this model"));
  }

  static constexpr int64_t kLogitRows = 256;

  const CudaDecoderOptions options_;
  const CudaModel model_;
  const c10::cuda::CUDAStream stream_;
  const at::Tensor workspace_;
  CudaCache cache_;
  std::optional<DecodeGraphs> graphs_;
  Facts facts_;
  at::Tensor states_;              // of the last Run
  std::vector<size_t> first_row_;  // of each of its sequences
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDecoder>> CudaDecoder::Load(const std::filesystem::path& folder,
                                                               const CudaDecoderOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<DecoderLoader> loader,
      DecoderLoader::Open(folder, Compute::kBf16, options.device, Purpose::kPrepare));
  return CatchTorch([&]() -> absl::StatusOr<std::unique_ptr<CudaDecoder>> {
    const c10::InferenceMode inference;
    const CudaScope scope(TorchDevice(options.device));
    NIBBLE_ASSIGN_OR_RETURN(CudaModel model, LoadCudaModel(*loader));
    auto decoder = std::make_unique<Impl>(options, std::move(model));
    NIBBLE_RETURN_IF_ERROR(decoder->Prepare());
    return decoder;
  });
}

}  // namespace nibble
