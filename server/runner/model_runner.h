// A model on a device, one step at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "quant/base/compute.h"
#include "server/runner/step.h"

namespace nibble {

// The KV pool's shape, fixed at load.
struct KvPool {
  int32_t blocks = 0;
  int32_t block_size = 0;  // tokens per block
  int64_t bytes = 0;       // of all of them
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual KvPool kv_pool() const = 0;
  virtual int64_t context() const = 0;  // tokens a sequence may hold
  virtual int32_t vocab_size() const = 0;
  virtual int64_t weight_bytes() const = 0;  // in memory
  // Runs every sequence's new tokens through the model. One call at a time. A status is of the
  // whole step: none of its sequences advanced.
  virtual absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) = 0;
};

struct LocalRunnerOptions {
  Compute compute = Compute::kBf16;
  int64_t kv_bytes = int64_t{1} << 30;  // KV pool, at most
};

// A runner in this process, on the CPU. RESOURCE_EXHAUSTED when `kv_bytes` holds no block.
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeLocalRunner(const std::filesystem::path& folder,
                                                             const LocalRunnerOptions& options);

}  // namespace nibble
