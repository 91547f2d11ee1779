// The linears of one input group (q, k, v; o; gate, up or fc1; down or fc2) on a GPU, their outputs
// side by side: by the W4A8 kernels where these have the format, else, labelled, over true values.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/model/decoder/decoder.h"

namespace nibble {

// What a group multiplies: E4M3 codes with a scale a token, or plain values.
struct GroupInput {
  at::Tensor codes;   // u8 [tokens, cols]
  at::Tensor scales;  // f32 [tokens]
  at::Tensor values;  // else: bf16 [tokens, cols]
};
GroupInput MakeCodes(int64_t tokens, int64_t cols, at::Device device);
GroupInput MakeValues(int64_t tokens, int64_t cols, at::Device device);

class LinearGroup {
 public:
  // `linears`, all of one group, as DecoderLoader reads them for Purpose::kPrepare.
  static absl::StatusOr<LinearGroup> Make(absl::Span<const LayerLinear* const> linears,
                                          at::Device device);

  // Whether Run takes codes: the W4A8 kernels multiply. Else it takes values.
  bool takes_codes() const { return prepared_.has_value(); }
  int64_t rows() const { return rows_; }  // of all linears
  int64_t cols() const { return cols_; }
  int64_t weight_bytes() const;
  size_t WorkspaceBytes(int64_t tokens) const;

  // bf16 [tokens, rows]. `workspace`: WorkspaceBytes, zeroed once. Queued on the current stream;
  // errors are thrown.
  at::Tensor Run(const GroupInput& x, const at::Tensor& workspace) const;

 private:
  struct TrueValues {
    at::Tensor weight, bias, lorc_a, lorc_b;  // bf16; the last three may be undefined
    std::optional<ActivationSpec> activation;
  };
  static absl::StatusOr<std::optional<LinearGroup>> Prepare(
      absl::Span<const LayerLinear* const> linears, at::Device device);

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  at::Tensor memory_;  // prepared_'s arrays
  std::optional<w4a8::PreparedLinear> prepared_;
  std::vector<TrueValues> true_values_;
};

}  // namespace nibble
