// Weights that went through Prepare on the device, and calls of the public interface.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/w4a8/arrange.h"
#include "tests/quant/kernels/cuda/w4a8/reference.h"

namespace nibble::w4a8 {

// Segments whose arrays lie on the device, as Prepare reads them.
class DeviceSegments {
 public:
  explicit DeviceSegments(const std::vector<HostSegment>& segments) {
    for (const HostSegment& host : segments) {
      const QuantizedMatrix& m = host.weight;
      Segment segment;
      segment.weight = {.spec = m.spec,
                        .rows = m.rows,
                        .cols = m.cols,
                        .codes = Copy(m.codes),
                        .scale = Copy(m.scale),
                        .exponent = Copy(m.exponent),
                        .row_scale = Copy(m.row_scale),
                        .k = Copy(m.k)};
      segment.bias = Copy(ToBf16(host.bias));
      segment.lorc_a = Copy(ToBf16(host.lorc_a));
      segment.lorc_b = Copy(ToBf16(host.lorc_b));
      segment.rank = host.rank;
      segments_.push_back(segment);
    }
  }
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  static std::vector<__nv_bfloat16> ToBf16(const std::vector<float>& values) {
    std::vector<__nv_bfloat16> rounded;
    for (const float value : values) rounded.push_back(__float2bfloat16(value));
    return rounded;
  }
  // Null for an empty array.
  template <class T>
  const T* Copy(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    std::vector<uint8_t> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    arrays_.emplace_back(bytes);
    return reinterpret_cast<const T*>(arrays_.back().data());
  }

  std::deque<DeviceArray<uint8_t>> arrays_;
  std::vector<Segment> segments_;
};

// Prepared weights with the memory they lie in, which is poisoned before.
class Prepared {
 public:
  explicit Prepared(const std::vector<HostSegment>& host) {
    const DeviceSegments device(host);
    const absl::StatusOr<size_t> bytes = PreparedBytes(device.segments());
    EXPECT_EQ(bytes.status(), absl::OkStatus());
    if (!bytes.ok()) return;
    memory_ = std::make_unique<DeviceArray<uint8_t>>(*bytes);
    const absl::StatusOr<PreparedLinear> linear =
        Prepare(device.segments(), memory_->data(), nullptr);
    EXPECT_EQ(linear.status(), absl::OkStatus());
    if (linear.ok()) linear_ = *linear;
    ExpectCuda(cudaDeviceSynchronize());
  }
  const PreparedLinear& linear() const { return linear_; }

 private:
  std::unique_ptr<DeviceArray<uint8_t>> memory_;
  PreparedLinear linear_;
};

// The arrays of one call on the device. What lies beyond y, and x's columns beyond cols, is
// poisoned.
class DeviceCall {
 public:
  static constexpr int64_t kBeyond = 4096;

  DeviceCall(const PreparedLinear& linear, const Input& input)
      : size_(input.tokens * linear.rows),
        pitch_(RoundUp(input.cols, 16)),
        tokens_(input.tokens),
        x_(Pad(input, pitch_)),
        x_scale_(input.x_scale),
        f32_(size_ + kBeyond),
        bf16_(size_ + kBeyond) {}

  LinearCall Call(void* workspace, bool as_f32) {
    LinearCall call;
    call.x = x_.data();
    call.x_pitch = pitch_;
    call.x_scale = x_scale_.data();
    call.tokens = tokens_;
    if (as_f32) {
      call.y_f32 = f32_.data();
    } else {
      call.y = bf16_.data();
    }
    call.workspace = workspace;
    return call;
  }
  // Makes y what no launch has written.
  void Poison() {
    ExpectCuda(cudaMemset(f32_.data(), 0xff, f32_.size() * 4));
    ExpectCuda(cudaMemset(bf16_.data(), 0xff, bf16_.size() * 2));
  }
  // Waits for the device.
  Output Read() const {
    Output output{f32_.Read(), bf16_.Read()};
    for (int64_t i = size_; i < size_ + kBeyond; ++i) {
      const bool untouched =
          std::isnan(output.f32[i]) && std::isnan(__bfloat162float(output.bf16[i]));
      EXPECT_TRUE(untouched) << "written beyond y at " << i - size_;
      if (!untouched) break;
    }
    output.f32.resize(size_);
    output.bf16.resize(size_);
    return output;
  }

 private:
  static std::vector<uint8_t> Pad(const Input& input, int64_t pitch) {
    std::vector<uint8_t> padded(input.tokens * pitch, 0x7f);
    for (int64_t token = 0; token < input.tokens; ++token) {
      std::memcpy(&padded[token * pitch], &input.x[token * input.cols], input.cols);
    }
    return padded;
  }

  int64_t size_;
  int64_t pitch_;
  int64_t tokens_;
  DeviceArray<uint8_t> x_;
  DeviceArray<float> x_scale_;
  DeviceArray<float> f32_;
  DeviceArray<__nv_bfloat16> bf16_;
};

// A workspace whose counters are zero and whose rest is poisoned.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : array_(std::max<size_t>(bytes, kWorkspaceCounterBytes)) {
    ExpectCuda(cudaMemset(array_.data(), 0, kWorkspaceCounterBytes));
  }
  void* data() { return array_.data(); }
  // As every launch must leave it.
  void ExpectZeroCounters() const {
    const std::vector<uint8_t> bytes = array_.Read();
    EXPECT_EQ(std::count(bytes.begin(), bytes.begin() + kWorkspaceCounterBytes, 0),
              kWorkspaceCounterBytes);
  }

 private:
  DeviceArray<uint8_t> array_;
};

// y as f32 and as bf16, through Launch.
inline Output Product(const Prepared& weights, const Input& input) {
  const PreparedLinear& linear = weights.linear();
  Workspace workspace(WorkspaceBytes(linear, input.tokens));
  DeviceCall call(linear, input);
  for (const bool as_f32 : {true, false}) {
    EXPECT_EQ(Launch(linear, call.Call(workspace.data(), as_f32), nullptr), absl::OkStatus());
  }
  const Output output = call.Read();
  workspace.ExpectZeroCounters();
  return output;
}

// The tokens `first`, first + 1, ... of another input, which it takes round its end.
inline Input TakeTokens(const Input& input, int64_t first, int64_t tokens) {
  Input part{tokens, input.cols, {}, {}};
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token = (first + i) % input.tokens;
    const auto from = input.x.begin() + token * input.cols;
    part.x.insert(part.x.end(), from, from + input.cols);
    part.x_scale.push_back(input.x_scale[token]);
  }
  return part;
}

// Whether row `a_token` of one output is row `b_token` of the other, bit for bit.
inline bool SameRow(const Output& a, int64_t a_token, const Output& b, int64_t b_token,
                    int64_t rows) {
  const auto has = [rows](const Output& y, int64_t token) {
    return static_cast<int64_t>(y.f32.size()) >= (token + 1) * rows;
  };
  return has(a, a_token) && has(b, b_token) &&
         std::memcmp(&a.f32[a_token * rows], &b.f32[b_token * rows], rows * 4) == 0 &&
         std::memcmp(&a.bf16[a_token * rows], &b.bf16[b_token * rows], rows * 2) == 0;
}

// Numbers that are exact in bf16.
inline std::vector<float> Bf16Numbers(int64_t count, float size, Random& random) {
  std::normal_distribution<float> normal(0, size);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = __bfloat162float(__float2bfloat16(normal(random)));
  return numbers;
}
// Integers from -most to most.
inline std::vector<float> Integers(int64_t count, int most, Random& random) {
  std::vector<float> numbers(count);
  for (float& number : numbers) {
    number = static_cast<float>(static_cast<int>(random() % (2 * most + 1)) - most);
  }
  return numbers;
}

}  // namespace nibble::w4a8
