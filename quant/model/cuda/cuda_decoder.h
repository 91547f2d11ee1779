// A whole model on one GPU, one step at a time: fused kernels, a paged cache, decode as CUDA
// graphs. Free of CUDA and LibTorch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/base/device.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/cuda/step_plan.h"

namespace nibble {

struct CudaDecoderOptions {
  Device device = {Device::Type::kCuda, 0};
  bool e4m3_cache = false;       // keys and values in 8 bits instead of bf16
  double memory_fraction = 0.9;  // of the device's memory, for weights, cache and all else
  int64_t kv_bytes = 0;          // the cache's, instead of what memory_fraction leaves; 0: that
  int64_t max_tokens = 2048;     // of a step
  int32_t max_sequences = 256;   // of a step
};

class CudaDecoder {
 public:
  // RESOURCE_EXHAUSTED where the memory doesn't hold the model and one block of the cache.
  static absl::StatusOr<std::unique_ptr<CudaDecoder>> Load(const std::filesystem::path& folder,
                                                           const CudaDecoderOptions& options);
  virtual ~CudaDecoder() = default;

  struct Facts {
    int64_t weight_bytes = 0;
    int32_t blocks = 0;             // of the cache
    int32_t block_size = 0;         // positions of each
    int64_t cache_bytes = 0;        // of all of them
    int64_t graphs = 0;             // captured
    int64_t graph_bytes = 0;        // of device memory
    int64_t true_value_groups = 0;  // of linears that no fast kernel takes, of all
    int64_t groups = 0;
  };
  virtual const Facts& facts() const = 0;
  virtual const ModelConfig& config() const = 0;

  // Runs the sequences' new tokens through the model; tokens[i] is drawn for sequence i, -1 where
  // it doesn't sample. INTERNAL where a drawn row has logits that are not finite.
  virtual absl::Status Run(absl::Span<const CudaSequence> sequences,
                           std::vector<int32_t>& tokens) = 0;

  // Logits after some of the last Run's tokens.
  struct Row {
    size_t sequence = 0;
    int64_t token = 0;  // of its new ones
  };
  // out: f32 [rows.size(), vocab].
  virtual absl::Status Logits(absl::Span<const Row> rows, std::vector<float>& out) = 0;
};

}  // namespace nibble
