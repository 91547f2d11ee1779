// The paged key-value cache as the kernels see it. Free of LibTorch.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "quant/base/kv_format.h"
#include "quant/base/strings.h"
#include "quant/kernels/cuda/launch.h"

namespace nibble {

// One layer's keys and values on the device: each [pages, page_size, kv_heads, stored_dim], of bf16
// or E4M3 bytes, aligned to 16 bytes. A token's slot is page * page_size + its place in the page. A
// head is stored in StoredHeadDim(head_dim) columns, those beyond head_dim zero.
struct PagedKv {
  void* k = nullptr;
  void* v = nullptr;
  KvFormat format = KvFormat::kBf16;
  // E4M3: value = code * scale, finite and positive. bf16: 1.
  float k_scale = 1;
  float v_scale = 1;
  int page_size = 16;  // tokens
  int kv_heads = 0;
  int head_dim = 0;  // 64, 80, 100 or 128
};

// 64 for 64; 128 for 80, 100 and 128.
constexpr int StoredHeadDim(int head_dim) { return head_dim <= 64 ? 64 : 128; }

// INVALID_ARGUMENT unless every field is as above.
inline absl::Status CheckPagedKv(const PagedKv& kv) {
  const auto expect = [](bool right, const char* field, auto found, const char* expected) {
    if (right) return absl::OkStatus();
    return absl::InvalidArgumentError(
        StrCat("kv cache: ", field, ": found ", found, ", expected ", expected));
  };
  const auto is_scale = [&](float scale) {
    return kv.format == KvFormat::kBf16 ? scale == 1 : scale > 0 && scale < 1e30f;
  };
  absl::Status status = CheckPointer("k cache", kv.k, 16);
  status.Update(CheckPointer("v cache", kv.v, 16));
  status.Update(
      expect(kv.head_dim == 64 || kv.head_dim == 80 || kv.head_dim == 100 || kv.head_dim == 128,
             "head_dim", kv.head_dim, "64, 80, 100 or 128"));
  status.Update(expect(kv.kv_heads > 0, "kv_heads", kv.kv_heads, "a positive number"));
  status.Update(expect(kv.page_size > 0, "page_size", kv.page_size, "a positive number"));
  status.Update(expect(is_scale(kv.k_scale), "k_scale", kv.k_scale, "1 for bf16, > 0 for e4m3"));
  status.Update(expect(is_scale(kv.v_scale), "v_scale", kv.v_scale, "1 for bf16, > 0 for e4m3"));
  return status;
}

}  // namespace nibble
