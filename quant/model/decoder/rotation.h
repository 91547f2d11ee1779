// QuaRot's R1 (arXiv 2404.00456): the same model with its residual stream turned by a random
// orthogonal matrix Q, which spreads outliers over all channels. Norms' gains (and biases) move
// into the linears behind them, so that RMSNorm commutes with Q, and LayerNorm with a Q that keeps
// the mean.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/model/checkpoint/config.h"

namespace nibble {

// f64 [hidden, hidden] on the CPU; Q 1 = 1 for OPT, whose LayerNorm takes the mean away. Of its
// seed alone, but for the last bits of LAPACK's sums.
at::Tensor RotationMatrix(Family family, int64_t hidden, uint64_t seed);

// A tensor as the checkpoint stores it, on the device; an error when its shape is another.
using StoredReader = std::function<absl::StatusOr<at::Tensor>(const std::string& name,
                                                              const std::vector<int64_t>& shape)>;

// Whether the turned model is exactly the same function: INVALID_ARGUMENT with the reason if not.
absl::Status CheckRotatable(const ModelConfig& config, const std::string& prefix,
                            const StoredReader& stored);

// The tensors of a turned model, by their names in the checkpoint ("lm_head.weight" always).
class Rotation {
 public:
  // `config` is the checkpoint's, CheckRotatable. Q and the turned tensors lie on `device`.
  Rotation(const ModelConfig& config, const std::string& prefix, uint64_t seed, at::Device device);

  // False: the tensor stays as it is.
  bool Turns(const std::string& name) const { return roles_.contains(name); }
  // Of a tensor that turns: computed in f64, rounded to f32.
  absl::StatusOr<at::Tensor> Read(const std::string& name, const StoredReader& stored) const;

 private:
  enum class Kind {
    kStream,      // rows of the stream: X Q^T
    kReader,      // W diag(gain) Q^T
    kReaderBias,  // b + W (norm's bias)
    kWriter,      // Q W
    kWriterBias,  // Q b
    kGain,        // 1
    kFoldedBias,  // 0: it is in the linears' biases
    kKeptBias,    // Q (bias / gain), behind a gain of 1
  };
  // Names without ".weight" and ".bias".
  struct Role {
    Kind kind;
    std::string source;  // the linear, or the embedding
    int64_t rows = 0;
    int64_t cols = 0;
    std::string norm;  // that a reader stands behind; empty: none
  };
  void AddNorm(const std::string& norm, bool folded);
  void AddLayer(int64_t layer);
  void AddEnds();

  ModelConfig config_;
  std::string prefix_;
  at::Tensor q_;
  absl::flat_hash_map<std::string, Role> roles_;
};

}  // namespace nibble
