#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/kernels/cpu/parallel.h"
#include "quant/model/decoder/decoder.h"
#include "server/runner/answers.h"
#include "server/runner/model_runner.h"

namespace nibble {
namespace {

// Rows whose logits stand in memory at once.
constexpr int64_t kLogitRows = 256;

constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;

Batch MakeBatch(const StepInputs& inputs) {
  Batch batch;
  for (const SequenceInput& sequence : inputs.sequences) {
    batch.segments.push_back({.first_row = static_cast<int64_t>(batch.tokens.size()),
                              .length = static_cast<int64_t>(sequence.tokens.size()),
                              .position = sequence.position,
                              .blocks = sequence.blocks});
    batch.tokens.insert(batch.tokens.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  return batch;
}

// Bytes of one block's keys and values, over all layers.
int64_t BlockBytes(const ModelConfig& config) {
  return config.layers * KvBlockBytes(config.kv_heads, config.head_dim);
}

class LocalRunner : public ModelRunner {
 public:
  LocalRunner(std::unique_ptr<Decoder> decoder, KvPool pool)
      : decoder_(std::move(decoder)), pool_(pool), cache_(decoder_->MakeCache(pool_.blocks)) {}

  KvPool kv_pool() const override { return pool_; }
  int64_t context() const override { return decoder_->config().context; }
  int32_t vocab_size() const override { return static_cast<int32_t>(decoder_->config().vocab); }
  int64_t weight_bytes() const override { return decoder_->weight_bytes(); }

  absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) override {
    return CatchTorch([&] {
      absl::StatusOr<StepOutputs> outputs;
      WithThreads([&] { outputs = RunStep(inputs); });
      return outputs;
    });
  }

 private:
  absl::StatusOr<StepOutputs> RunStep(const StepInputs& inputs) {
    const c10::InferenceMode inference;
    const Batch batch = MakeBatch(inputs);
    const at::Tensor hidden = decoder_->Forward(batch, &cache_);
    StepOutputs outputs;
    for (const SequenceInput& sequence : inputs.sequences) {
      outputs.sequences.emplace_back().sequence = sequence.sequence;
    }
    const std::vector<WantedRow> wanted = WantedRows(inputs);
    const int64_t count = static_cast<int64_t>(wanted.size());
    for (int64_t begin = 0; begin < count; begin += kLogitRows) {
      const int64_t rows = std::min(kLogitRows, count - begin);
      NIBBLE_RETURN_IF_ERROR(
          Answer(inputs, batch, hidden, absl::MakeConstSpan(wanted).subspan(begin, rows), outputs));
    }
    return outputs;
  }

  absl::Status Answer(const StepInputs& inputs, const Batch& batch, const at::Tensor& hidden,
                      absl::Span<const WantedRow> wanted, StepOutputs& outputs) const {
    std::vector<int64_t> rows;
    for (const WantedRow& row : wanted) {
      rows.push_back(batch.segments[row.sequence].first_row + row.token);
    }
    const at::Tensor logits = decoder_->Logits(hidden, rows).contiguous();
    const auto vocab = static_cast<size_t>(logits.size(1));
    float* const values = logits.mutable_data_ptr<float>();
    std::vector<absl::StatusOr<RowAnswer>> answers(wanted.size());
    ParallelTasks(static_cast<int64_t>(wanted.size()), [&](int64_t i) {
      answers[i] = AnswerRow(inputs, wanted[i], {values + i * vocab, vocab});
    });
    for (size_t i = 0; i < wanted.size(); ++i) {
      NIBBLE_RETURN_IF_ERROR(answers[i].status());
      AddAnswer(wanted[i], *std::move(answers[i]), outputs);
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<Decoder> decoder_;
  const KvPool pool_;
  std::vector<KvBlocks> cache_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeLocalRunner(const std::filesystem::path& folder,
                                                             const RunnerOptions& options) {
  return CatchTorch([&]() -> absl::StatusOr<std::unique_ptr<ModelRunner>> {
    const c10::InferenceMode inference;
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder,
                            Decoder::Load(folder, options.compute));
    EndThreads();
    const int64_t block_bytes = BlockBytes(decoder->config());
    const int64_t bytes = options.kv_bytes > 0 ? options.kv_bytes : kDefaultKvBytes;
    const int64_t blocks = std::min<int64_t>(bytes / block_bytes, INT32_MAX);
    if (blocks == 0) {
      return absl::ResourceExhaustedError(StrCat("KV cache: found ", bytes,
                                                 " bytes, expected at least the ", block_bytes,
                                                 " of one block of this model"));
    }
    return std::make_unique<LocalRunner>(std::move(decoder),
                                         KvPool{.blocks = static_cast<int32_t>(blocks),
                                                .block_size = kKvBlockSize,
                                                .bytes = blocks * block_bytes});
  });
}

}  // namespace nibble
