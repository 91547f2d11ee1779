#include "quant/base/strings.h"
#include "server/runner/cuda_runner.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeCudaRunner(const std::filesystem::path&,
                                                            const RunnerOptions& options) {
  return absl::FailedPreconditionError(StrCat("device: found ", DeviceName(options.device),
                                              ", expected cpu: this build has no CUDA"));
}

}  // namespace nibble
