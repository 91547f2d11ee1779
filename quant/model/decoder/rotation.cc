#include "quant/model/decoder/rotation.h"

#include <bit>
#include <cmath>
#include <numbers>
#include <random>
#include <tuple>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/decoder/linears.h"

namespace nibble {
namespace {

// The standard's distributions differ between libraries; its engine does not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  double Sign() { return (engine_() >> 63) == 0 ? 1 : -1; }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  double Uniform() {
    return std::ldexp(static_cast<double>((engine_() >> 11) + 1), -53);
  }  // (0, 1]

  std::mt19937_64 engine_;
};

// Uniform over the orthogonal matrices.
at::Tensor RandomOrthogonal(int64_t n, Random& random) {
  const at::Tensor normal = at::empty({n, n}, at::kDouble);
  for (int64_t i = 0; i < n * n; ++i) normal.data_ptr<double>()[i] = random.Normal();
  const auto [q, r] = at::linalg_qr(normal);
  return (q * r.diagonal().sign()).contiguous();  // QR gives columns
}

// Sylvester's, n a power of two.
at::Tensor Hadamard(int64_t n) {
  at::Tensor matrix = at::ones({1, 1}, at::kDouble);
  while (matrix.size(0) < n) {
    matrix = at::cat({at::cat({matrix, matrix}, 1), at::cat({matrix, -matrix}, 1)});
  }
  return matrix / std::sqrt(static_cast<double>(n));
}

at::Tensor HadamardRotation(int64_t n, Random& random) {
  const at::Tensor signs = at::empty({n}, at::kDouble);
  for (int64_t i = 0; i < n; ++i) signs.data_ptr<double>()[i] = random.Sign();
  const int64_t power = int64_t{1} << std::countr_zero(static_cast<uint64_t>(n));
  return at::kron(Hadamard(power), RandomOrthogonal(n / power, random)) * signs;
}

// F diag(1, R) F, where the reflection F takes the first axis to the direction of ones.
at::Tensor RotationThatKeepsOnes(int64_t n, Random& random) {
  at::Tensor axis = at::full({n}, 1 / std::sqrt(static_cast<double>(n)), at::kDouble);
  axis[0] += 1;
  axis /= axis.norm();
  at::Tensor q = at::eye(n, at::kDouble);
  q.slice(0, 1).slice(1, 1).copy_(RandomOrthogonal(n - 1, random));
  q -= at::outer(2 * q.mv(axis), axis);
  q -= at::outer(axis, 2 * q.t().mv(axis));
  return q;
}

// The norms of a LayerNorm model whose biases stay: those with no bias behind them to go into.
std::vector<std::string> KeptBiases(const ModelConfig& config, const std::string& prefix) {
  std::vector<std::string> norms;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto [attention, mlp] = LayerNorms(config.family, prefix, layer);
    if (!HasBias(config, InputGroup::kAttentionIn)) norms.push_back(attention);
    if (!HasBias(config, InputGroup::kMlpIn)) norms.push_back(mlp);
  }
  if (config.final_norm) norms.push_back(FinalNorm(config.family, prefix));
  return norms;
}

absl::Status Refuse(std::string_view found, std::string_view expected) {
  return absl::InvalidArgumentError(StrCat("rotate: found ", found, ", expected ", expected));
}

// Stored values in f64.
class Reader {
 public:
  Reader(const StoredReader& stored, int64_t hidden) : stored_(stored), hidden_(hidden) {}

  absl::StatusOr<at::Tensor> Weight(const std::string& name, int64_t rows, int64_t cols) const {
    return Read(StrCat(name, ".weight"), {rows, cols});
  }
  absl::StatusOr<at::Tensor> Bias(const std::string& name, int64_t rows) const {
    return Read(StrCat(name, ".bias"), {rows});
  }
  absl::StatusOr<at::Tensor> Gain(const std::string& norm) const {
    return Read(StrCat(norm, ".weight"), {hidden_});
  }
  absl::StatusOr<at::Tensor> NormBias(const std::string& norm) const { return Bias(norm, hidden_); }

 private:
  absl::StatusOr<at::Tensor> Read(const std::string& name,
                                  const std::vector<int64_t>& shape) const {
    NIBBLE_ASSIGN_OR_RETURN(const at::Tensor tensor, stored_(name, shape));
    return tensor.to(at::kDouble);
  }

  const StoredReader& stored_;
  const int64_t hidden_;
};

}  // namespace

at::Tensor RotationMatrix(Family family, int64_t hidden, uint64_t seed) {
  Random random(seed);
  return family == Family::kOpt ? RotationThatKeepsOnes(hidden, random)
                                : HadamardRotation(hidden, random);
}

absl::Status CheckRotatable(const ModelConfig& config, const std::string& prefix,
                            const StoredReader& stored) {
  if (config.family != Family::kOpt) return absl::OkStatus();
  if (!config.pre_norm) {
    return Refuse("do_layer_norm_before false", "true: the gain of a norm after a sum can't move");
  }
  if (config.embed_dim != config.hidden) {
    return Refuse(StrCat("word_embed_proj_dim ", config.embed_dim),
                  StrCat("hidden_size ", config.hidden, ": projected embeddings are not turned"));
  }
  const Reader reader(stored, config.hidden);
  for (const std::string& norm : KeptBiases(config, prefix)) {
    NIBBLE_ASSIGN_OR_RETURN(const at::Tensor gain, reader.Gain(norm));
    NIBBLE_ASSIGN_OR_RETURN(const at::Tensor bias, reader.NormBias(norm));
    if (gain.eq(0).logical_and(bias.ne(0)).any().item<bool>()) {
      return Refuse(StrCat("a gain of 0 beside a bias in ", norm),
                    "other gains: the bias is divided by them");
    }
  }
  return absl::OkStatus();
}

Rotation::Rotation(const ModelConfig& config, const std::string& prefix, uint64_t seed,
                   at::Device device)
    : config_(config),
      prefix_(prefix),
      q_(RotationMatrix(config.family, config.hidden, seed).to(device)) {
  for (int64_t layer = 0; layer < config.layers; ++layer) AddLayer(layer);
  AddEnds();
}

void Rotation::AddNorm(const std::string& norm, bool folded) {
  roles_[StrCat(norm, ".weight")] = {.kind = Kind::kGain, .source = "", .norm = norm};
  if (config_.family != Family::kOpt) return;
  const Kind kind = folded ? Kind::kFoldedBias : Kind::kKeptBias;
  roles_[StrCat(norm, ".bias")] = {.kind = kind, .source = "", .norm = norm};
}

void Rotation::AddLayer(int64_t layer) {
  const auto [attention, mlp] = LayerNorms(config_.family, prefix_, layer);
  AddNorm(attention, HasBias(config_, InputGroup::kAttentionIn));
  AddNorm(mlp, HasBias(config_, InputGroup::kMlpIn));
  for (const LinearInfo& linear : LayerLinears(config_, prefix_, layer)) {
    Role role = {.kind = Kind::kWriter,
                 .source = linear.name,
                 .rows = linear.rows,
                 .cols = linear.cols,
                 .norm = ""};
    const bool reads =
        linear.input == InputGroup::kAttentionIn || linear.input == InputGroup::kMlpIn;
    if (reads) {
      role.kind = Kind::kReader;
      role.norm = linear.input == InputGroup::kAttentionIn ? attention : mlp;
    }
    roles_[StrCat(linear.name, ".weight")] = role;
    if (!HasBias(config_, linear.input) || (reads && config_.family != Family::kOpt)) continue;
    role.kind = reads ? Kind::kReaderBias : Kind::kWriterBias;
    roles_[StrCat(linear.name, ".bias")] = role;
  }
}

void Rotation::AddEnds() {
  const std::string embedding = StrCat(prefix_, "embed_tokens");
  Role role = {.kind = Kind::kStream,
               .source = embedding,
               .rows = config_.vocab,
               .cols = config_.hidden,
               .norm = ""};
  roles_[StrCat(embedding, ".weight")] = role;
  role.kind = Kind::kReader;
  if (!config_.tied_embeddings) role.source = "lm_head";
  if (config_.final_norm) role.norm = FinalNorm(config_.family, prefix_);
  roles_["lm_head.weight"] = role;
  if (config_.final_norm) AddNorm(role.norm, /*folded=*/false);
  if (config_.family != Family::kOpt) return;
  const std::string positions = StrCat(prefix_, "embed_positions");
  roles_[StrCat(positions, ".weight")] = {.kind = Kind::kStream,
                                          .source = positions,
                                          .rows = config_.context + 2,
                                          .cols = config_.hidden,
                                          .norm = ""};
}

absl::StatusOr<at::Tensor> Rotation::Read(const std::string& name,
                                          const StoredReader& stored) const {
  const auto& [kind, source, rows, cols, norm] = roles_.at(name);
  const Reader reader(stored, config_.hidden);
  at::Tensor made;
  switch (kind) {
    case Kind::kStream: {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor vectors, reader.Weight(source, rows, cols));
      made = vectors.mm(q_.t());
      break;
    }
    case Kind::kReader: {
      NIBBLE_ASSIGN_OR_RETURN(at::Tensor weight, reader.Weight(source, rows, cols));
      if (!norm.empty()) {
        NIBBLE_ASSIGN_OR_RETURN(const at::Tensor gain, reader.Gain(norm));
        weight.mul_(gain);
      }
      made = weight.mm(q_.t());
      break;
    }
    case Kind::kReaderBias: {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor bias, reader.Bias(source, rows));
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor weight, reader.Weight(source, rows, cols));
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor shift, reader.NormBias(norm));
      made = bias + weight.mv(shift);
      break;
    }
    case Kind::kWriter: {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor weight, reader.Weight(source, rows, cols));
      made = q_.mm(weight);
      break;
    }
    case Kind::kWriterBias: {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor bias, reader.Bias(source, rows));
      made = q_.mv(bias);
      break;
    }
    case Kind::kGain:
      return at::ones({config_.hidden}, q_.options().dtype(at::kFloat));
    case Kind::kFoldedBias:
      return at::zeros({config_.hidden}, q_.options().dtype(at::kFloat));
    case Kind::kKeptBias: {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor gain, reader.Gain(norm));
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor bias, reader.NormBias(norm));
      made = q_.mv(at::where(bias.eq(0), bias, bias / gain));
      break;
    }
  }
  return made.to(at::kFloat);
}

}  // namespace nibble
