#include "server/runner/cuda_runner.h"

#include <utility>
#include <vector>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/device/devices.h"
#include "server/runner/answers.h"

namespace nibble {
namespace {

// Rows whose logits stand in memory at once.
constexpr size_t kLogitRows = 256;

bool DrawsOnDevice(const SequenceInput& sequence) {
  return sequence.sample && sequence.top_logprobs < 0 && sequence.history.empty() &&
         sequence.banned.empty() && sequence.sampling.logit_bias.empty();
}

absl::StatusOr<CudaSequence> ToCuda(const SequenceInput& input) {
  CudaSequence sequence = {.tokens = input.tokens,
                           .position = input.position,
                           .blocks = input.blocks,
                           .sample = DrawsOnDevice(input)};
  const SamplingParams& sampling = input.sampling;
  NIBBLE_ASSIGN_OR_RETURN(sequence.sampling, MakeSamplingRow({.temperature = sampling.temperature,
                                                              .top_k = sampling.top_k,
                                                              .top_p = sampling.top_p,
                                                              .min_p = sampling.min_p,
                                                              .seed = sampling.seed}));
  return sequence;
}

class CudaRunner : public ModelRunner {
 public:
  explicit CudaRunner(std::unique_ptr<CudaDecoder> decoder) : decoder_(std::move(decoder)) {}

  KvPool kv_pool() const override {
    return {.blocks = decoder_->facts().blocks,
            .block_size = decoder_->facts().block_size,
            .bytes = decoder_->facts().cache_bytes};
  }
  int64_t context() const override { return decoder_->config().context; }
  int32_t vocab_size() const override { return static_cast<int32_t>(decoder_->config().vocab); }
  int64_t weight_bytes() const override { return decoder_->facts().weight_bytes; }

  absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) override {
    sequences_.clear();
    for (const SequenceInput& input : inputs.sequences) {
      NIBBLE_ASSIGN_OR_RETURN(sequences_.emplace_back(), ToCuda(input));
    }
    NIBBLE_RETURN_IF_ERROR(decoder_->Run(sequences_, tokens_));
    StepOutputs outputs;
    outputs.sequences.resize(inputs.sequences.size());
    for (size_t i = 0; i < inputs.sequences.size(); ++i) {
      outputs.sequences[i].sequence = inputs.sequences[i].sequence;
      if (sequences_[i].sample) outputs.sequences[i].token = tokens_[i];
    }
    NIBBLE_RETURN_IF_ERROR(AnswerOnHost(inputs, outputs));
    return outputs;
  }

 private:
  absl::Status AnswerOnHost(const StepInputs& inputs, StepOutputs& outputs) {
    std::vector<WantedRow> wanted = WantedRows(inputs);
    for (WantedRow& row : wanted) row.sample &= !sequences_[row.sequence].sample;
    std::erase_if(wanted, [](const WantedRow& row) { return !row.sample && !row.target; });
    for (size_t begin = 0; begin < wanted.size(); begin += kLogitRows) {
      const auto some = absl::MakeConstSpan(wanted).subspan(begin, kLogitRows);
      std::vector<CudaDecoder::Row> rows;
      for (const WantedRow& row : some) rows.push_back({row.sequence, row.token});
      NIBBLE_RETURN_IF_ERROR(decoder_->Logits(rows, logits_));
      const size_t vocab = logits_.size() / some.size();
      for (size_t i = 0; i < some.size(); ++i) {
        NIBBLE_ASSIGN_OR_RETURN(RowAnswer answer,
                                AnswerRow(inputs, some[i], {logits_.data() + i * vocab, vocab}));
        AddAnswer(some[i], std::move(answer), outputs);
      }
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<CudaDecoder> decoder_;
  std::vector<CudaSequence> sequences_;  // of the step
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
};

}  // namespace

std::unique_ptr<ModelRunner> MakeCudaRunner(std::unique_ptr<CudaDecoder> decoder) {
  return std::make_unique<CudaRunner>(std::move(decoder));
}

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeCudaRunner(const std::filesystem::path& folder,
                                                            const RunnerOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckDevice(options.device));
  if (options.compute != Compute::kBf16) {
    return absl::FailedPreconditionError(
        StrCat("compute: found f32, expected bf16 on ", DeviceName(options.device)));
  }
  const CudaDecoderOptions decoder_options = {.device = options.device,
                                              .e4m3_cache = options.kv_format == KvFormat::kE4M3,
                                              .memory_fraction = options.gpu_memory_fraction,
                                              .kv_bytes = options.kv_bytes,
                                              .max_tokens = options.max_step_tokens,
                                              .max_sequences = options.max_sequences};
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CudaDecoder> decoder,
                          CudaDecoder::Load(folder, decoder_options));
  return MakeCudaRunner(std::move(decoder));
}

}  // namespace nibble
