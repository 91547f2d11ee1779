// A runner in this process, on one GPU.
#pragma once

#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"
#include "quant/model/cuda/cuda_decoder.h"
#include "server/runner/model_runner.h"

namespace nibble {

// Sequences that ask for no more than a token drawn by temperature, top-k, top-p and min-p get it
// on the device; the logits of others come to the host and are answered there.
// In builds with CUDA only.
std::unique_ptr<ModelRunner> MakeCudaRunner(std::unique_ptr<CudaDecoder> decoder);

// Loads a folder onto options.device, as MakeRunner does. FAILED_PRECONDITION in builds without
// CUDA.
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeCudaRunner(const std::filesystem::path& folder,
                                                            const RunnerOptions& options);

}  // namespace nibble
