// Random W4A8 linears for benches, in as many copies as keep them cold, and what a call needs.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/bench/gpu/device_buffer.h"
#include "tests/bench/gpu/graph_timer.h"

namespace nibble::w4a8 {

template <class T>
T ValueOrDie(absl::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

// A random matrix and LoRC factors on the device, as Prepare reads them.
class Source {
 public:
  Source(const WeightSpec& spec, int64_t rows, int64_t cols, int rank)
      : codes_(rows * CeilDiv(cols * FormatBits(spec.format), 8),
               FormatBits(spec.format) == 8 ? 0xbfbfbfbfu : ~0u, 0),
        scale_(rows * Groups(spec, cols) * 4, 0, kScaleBits),
        row_scale_(rows * 4, 0, kScaleBits),
        k_(rows * Groups(spec, cols), 0x03030303u, 0),  // M1's exponents, or more than M2's k
        lorc_a_(std::max<int64_t>(1, rows * rank) * 2),
        lorc_b_(std::max<int64_t>(1, cols * rank) * 2) {
    segment_.weight = {.spec = spec,
                       .rows = rows,
                       .cols = cols,
                       .codes = codes_.as<uint8_t>(),
                       .scale = scale_.as<float>(),
                       .exponent = k_.as<int8_t>(),
                       .row_scale = row_scale_.as<float>(),
                       .k = k_.as<uint8_t>()};
    segment_.rank = rank;
    if (rank == 0) return;
    segment_.lorc_a = lorc_a_.as<__nv_bfloat16>();
    segment_.lorc_b = lorc_b_.as<__nv_bfloat16>();
  }
  const Segment& segment() const { return segment_; }

 private:
  static constexpr uint32_t kScaleBits = 0x3c23d70au;  // 0.01f
  static int64_t Groups(const WeightSpec& spec, int64_t cols) {
    return GroupCount(cols, spec.group_size);
  }

  Buffer codes_;
  Buffer scale_;
  Buffer row_scale_;
  Buffer k_;
  Buffer lorc_a_;
  Buffer lorc_b_;
  Segment segment_;
};

struct Size {
  int64_t rows;
  int64_t cols;
};
inline Size ParseShape(const std::string& text) {
  long long rows = 0;
  long long cols = 0;
  if (std::sscanf(text.c_str(), "%lldx%lld", &rows, &cols) != 2 || rows < 1 || cols < 1) {
    OrDie(absl::InvalidArgumentError("--shapes: found " + text + ", expected ROWSxCOLS"));
  }
  return {rows, cols};
}

// Copies of one linear that take turns.
class ColdLinear {
 public:
  ColdLinear(const WeightSpec& spec, const Size& size, int rank) {
    OrDie(spec.Validate());
    const Source source(spec, size.rows, size.cols, rank);
    bytes_ = ValueOrDie(PreparedBytes({source.segment()}));
    for (int i = 0; i < ColdCopies(bytes_); ++i) {
      memories_.emplace_back(bytes_);
      void* memory = memories_.back().as<void>();
      copies_.push_back(ValueOrDie(Prepare({source.segment()}, memory, nullptr)));
    }
    OrDie(cudaDeviceSynchronize());
  }
  const PreparedLinear& first() const { return copies_[0]; }
  size_t bytes() const { return bytes_; }  // of one copy
  // Of one launch(weights, stream).
  template <class Launch>
  double Microseconds(Launch&& launch) const {
    const int count = static_cast<int>(copies_.size());
    return GraphMicroseconds(ColdLaunches(count), [&](cudaStream_t stream, int i) {
      return launch(copies_[i % count], stream);
    });
  }

 private:
  size_t bytes_ = 0;
  std::deque<Buffer> memories_;
  std::vector<PreparedLinear> copies_;
};

// Activations, output and workspace of calls of `tokens` tokens.
class CallBuffers {
 public:
  CallBuffers(const PreparedLinear& weights, int64_t tokens, size_t workspace_bytes)
      : x_(tokens * RoundUp(weights.cols, 16), 0xbfbfbfbfu, 0),  // finite E4M3 codes
        x_scale_(tokens * 4),
        y_(tokens * weights.rows * 2),
        workspace_(std::max<size_t>(4, workspace_bytes), 0, 0) {
    call_.x = x_.as<uint8_t>();
    call_.x_pitch = RoundUp(weights.cols, 16);
    call_.x_scale = x_scale_.as<float>();
    call_.tokens = tokens;
    call_.y = y_.as<__nv_bfloat16>();
    call_.workspace = workspace_.as<void>();
  }
  const LinearCall& call() const { return call_; }

 private:
  Buffer x_;
  Buffer x_scale_;
  Buffer y_;
  Buffer workspace_;
  LinearCall call_;
};

}  // namespace nibble::w4a8
