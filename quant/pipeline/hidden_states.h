// The calibration's hidden states between two layers: too many to stay on a small device. Private
// to pipeline/.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>

#include "absl/status/statusor.h"
#include "quant/pipeline/states_place.h"

namespace nibble {

// Of the memory that is free now.
StatesBudget FreeStatesBudget(at::Device device);

class HiddenStates {
 public:
  HiddenStates() = default;
  // Room for [tokens, width] of the options' type and device, in the first place whose budget holds
  // them. A file lies in `folder`, which must exist, without a name; RESOURCE_EXHAUSTED when the
  // disk is full.
  static absl::StatusOr<HiddenStates> Make(int64_t tokens, int64_t width,
                                           const at::TensorOptions& options,
                                           const StatesBudget& budget,
                                           const std::filesystem::path& folder);

  StatesPlace place() const { return place_; }
  // Rows first .. first + count - 1, on the device.
  at::Tensor Read(int64_t first, int64_t count) const;
  // From row `first` on.
  void Write(int64_t first, const at::Tensor& rows);

 private:
  StatesPlace place_ = StatesPlace::kDevice;
  at::Device device_ = at::kCPU;
  at::Tensor rows_;
};

}  // namespace nibble
