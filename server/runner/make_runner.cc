#include "server/runner/cuda_runner.h"
#include "server/runner/model_runner.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRunner(const std::filesystem::path& folder,
                                                        const RunnerOptions& options) {
  if (options.device.is_cuda()) return MakeCudaRunner(folder, options);
  if (options.kv_format != KvFormat::kBf16) {
    return absl::FailedPreconditionError("kv_format: found e4m3, expected bf16 on a CPU");
  }
  return MakeLocalRunner(folder, options);
}

}  // namespace nibble
