// A model on a device, one step at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "quant/base/compute.h"
#include "quant/base/device.h"
#include "quant/base/kv_format.h"
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
  // Which KV cache it is: another number once what the blocks held is lost. Asked before each step
  // is planned.
  virtual int64_t kv_epoch() { return 0; }
  // Runs every sequence's new tokens through the model. One call at a time. A status is of the
  // whole step: none of its sequences advanced.
  virtual absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) = 0;
};

struct RunnerOptions {
  Device device;
  Compute compute = Compute::kBf16;
  int64_t kv_bytes = 0;  // KV pool, at most; 0: 1 GiB on a CPU, what the fraction leaves on a GPU
  double gpu_memory_fraction = 0.9;      // of a GPU's memory, for all that the runner holds
  KvFormat kv_format = KvFormat::kBf16;  // of a GPU's cache; on a CPU it is kBf16, and f32 is held
  int64_t max_step_tokens = 2048;        // that a GPU makes room for
  int32_t max_sequences = 256;           // the same, of a step
};

// A runner in this process, on options.device. FAILED_PRECONDITION where this process can't use the
// device or the device can't do as asked, RESOURCE_EXHAUSTED where its memory holds no KV block.
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRunner(const std::filesystem::path& folder,
                                                        const RunnerOptions& options);

// The same on the CPU, whatever device and format the options name.
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeLocalRunner(const std::filesystem::path& folder,
                                                             const RunnerOptions& options);

}  // namespace nibble
