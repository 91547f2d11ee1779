// A runner in this process, on one GPU. In builds with CUDA.
#pragma once

#include <memory>

#include "quant/model/cuda/cuda_decoder.h"
#include "server/runner/model_runner.h"

namespace nibble {

// Sequences that ask for no more than a token drawn by temperature, top-k, top-p and min-p get it
// on the device; the logits of others come to the host and are answered there.
std::unique_ptr<ModelRunner> MakeCudaRunner(std::unique_ptr<CudaDecoder> decoder);

}  // namespace nibble
