// How long the kernels beside the linears take, for LLaMA shapes: microseconds of one launch within
// a CUDA graph, and the bytes that it must move over that time. Inputs are random; caches rotate
// past the second-level cache, activations stay in it as they do in a step.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "quant/kernels/cuda/activations.h"
#include "quant/kernels/cuda/attention.h"
#include "quant/kernels/cuda/embedding.h"
#include "quant/kernels/cuda/norm.h"
#include "quant/kernels/cuda/rotary.h"
#include "quant/kernels/cuda/sampling.h"
#include "tests/bench/gpu/device_buffer.h"
#include "tests/bench/gpu/graph_timer.h"

namespace nibble {
namespace {

struct Model {
  const char* name;
  int hidden;
  int intermediate;
  int heads;
  int kv_heads;
  int vocab;
};
constexpr int kHeadDim = 128;
constexpr int kPageSize = 16;
constexpr Model kModels[] = {{"llama-7b", 4096, 11008, 32, 32, 32000},
                             {"llama-3-8b", 4096, 14336, 32, 8, 128256}};

void Print(const Model& model, const std::string& kernel, int64_t tokens, double microseconds,
           double bytes) {
  std::printf("%-11s %-26s %6lld %9.2f %9.2f MB %7.3f TB/s\n", model.name, kernel.c_str(),
              static_cast<long long>(tokens), microseconds, bytes / 1e6,
              bytes / microseconds / 1e6);
  std::fflush(stdout);
}

void BenchRows(const Model& model, int64_t tokens) {
  const int64_t h = model.hidden;
  const int64_t f = model.intermediate;
  const Buffer gain(h * 2);
  const Buffer hidden(tokens * h * 2);
  const Buffer delta(tokens * h * 2);
  const Buffer gate_up(tokens * f * 4);
  const Buffer codes(tokens * f);
  const Buffer scales(tokens * 4);
  using Bf16 = __nv_bfloat16;
  const auto time = [](auto&& launch) {
    return GraphMicroseconds(64, [&](cudaStream_t stream, int) { return launch(stream); });
  };
  const DeviceNorm rms = {gain.as<Bf16>()};
  Print(model, "add+rmsnorm+e4m3", tokens, time([&](cudaStream_t stream) {
          return AddNormQuantize(rms, hidden.as<Bf16>(), delta.as<Bf16>(), tokens, h,
                                 codes.as<uint8_t>(), scales.as<float>(), stream);
        }),
        tokens * h * 7.0);
  const DeviceNorm layer = {gain.as<Bf16>(), gain.as<Bf16>()};
  Print(model, "add+layernorm+e4m3", tokens, time([&](cudaStream_t stream) {
          return AddNormQuantize(layer, hidden.as<Bf16>(), delta.as<Bf16>(), tokens, h,
                                 codes.as<uint8_t>(), scales.as<float>(), stream);
        }),
        tokens * h * 7.0);
  Print(model, "e4m3", tokens, time([&](cudaStream_t stream) {
          return QuantizeActivationsE4M3(delta.as<Bf16>(), tokens, h, codes.as<uint8_t>(),
                                         scales.as<float>(), stream);
        }),
        tokens * h * 3.0);
  Print(model, "silu*up+e4m3", tokens, time([&](cudaStream_t stream) {
          return SiluMulQuantize(gate_up.as<Bf16>(), tokens, f, codes.as<uint8_t>(),
                                 scales.as<float>(), stream);
        }),
        tokens * f * 5.0);
  const Buffer table(int64_t{model.vocab} * h * 2);
  std::vector<int32_t> ids(tokens);
  std::mt19937 random(2);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % model.vocab);
  const Buffer device_ids(ids);
  Print(model, "embedding", tokens, time([&](cudaStream_t stream) {
          return Embed(table.as<Bf16>(), model.vocab, h, device_ids.as<int32_t>(), nullptr, tokens,
                       hidden.as<Bf16>(), stream);
        }),
        tokens * h * 4.0);
}

void BenchSampling(const Model& model, int64_t rows) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<__nv_bfloat16> logits(rows * model.vocab);
  const size_t fresh = std::min<size_t>(logits.size(), 8 * model.vocab);  // then over again
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = i < fresh ? __float2bfloat16(normal(random)) : logits[i - fresh];
  }
  const Buffer device(logits.size() * 2);
  OrDie(cudaMemcpy(device.as<void>(), logits.data(), logits.size() * 2, cudaMemcpyHostToDevice));
  const Buffer tokens(rows * 4);
  const Buffer positions(std::vector<int32_t>(rows, 7));
  const auto bench = [&](const char* name, const SamplingOptions& options) {
    const std::vector<SamplingRow> host(rows, *MakeSamplingRow(options));
    const Buffer params(rows * sizeof(SamplingRow));
    OrDie(cudaMemcpy(params.as<void>(), host.data(), rows * sizeof(SamplingRow),
                     cudaMemcpyHostToDevice));
    Print(model, name, rows,
          GraphMicroseconds(16,
                            [&](cudaStream_t stream, int) {
                              return SampleTokens(
                                  LogitRows<__nv_bfloat16>{device.as<__nv_bfloat16>(), rows,
                                                           model.vocab, model.vocab},
                                  params.as<SamplingRow>(), positions.as<int32_t>(),
                                  tokens.as<int32_t>(), stream);
                            }),
          rows * model.vocab * 2.0);
  };
  bench("greedy", {.temperature = 0});
  bench("sample", {.temperature = 0.8f});
  bench("sample top-k 50 top-p 0.9", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f});
}

// `sequences` of `queries` new tokens that end at `length` keys.
void BenchAttention(const Model& model, AttentionRegime regime, int sequences, int queries,
                    int length, KvFormat format) {
  const int pages = (length + kPageSize - 1) / kPageSize;
  const AttentionLimits limits = {.regime = regime,
                                  .group = model.heads / model.kv_heads,
                                  .kv_heads = model.kv_heads,
                                  .page_size = kPageSize,
                                  .sequences = sequences,
                                  .tokens = sequences * queries,
                                  .pages = sequences * pages,
                                  .work = sequences * std::max(64, 8 * queries),
                                  .partials = sequences * queries * (queries == 1 ? 64 : 8)};
  std::vector<int32_t> table(sequences * pages);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(4));
  std::vector<AttentionSequence> list;
  for (int i = 0; i < sequences; ++i) {
    list.push_back({queries, length, absl::MakeConstSpan(table).subspan(i * pages, pages)});
  }
  std::vector<int32_t> image(AttentionImage(limits).end);
  const auto plan = PlanAttention(limits, list, absl::MakeSpan(image));
  OrDie(plan.status());
  const Buffer device_image(image);

  const bool e4m3 = format == KvFormat::kE4M3;
  const size_t bytes =
      size_t(sequences) * pages * kPageSize * model.kv_heads * kHeadDim * (e4m3 ? 1 : 2);
  const int layers = static_cast<int>(std::max<size_t>(2, (160u << 20) / (2 * bytes) + 1));
  std::vector<std::unique_ptr<Buffer>> caches;
  for (int i = 0; i < 2 * layers; ++i) caches.push_back(std::make_unique<Buffer>(bytes));
  const int64_t tokens = plan->tokens;
  const int64_t width = int64_t{model.heads} * kHeadDim;
  const Buffer qkv(tokens * (width + 2 * model.kv_heads * kHeadDim) * 2);
  const Buffer q(tokens * width * 2);
  const Buffer frequencies(kHeadDim / 2 * 4);
  const Buffer codes(tokens * width);
  const Buffer scales(tokens * 4);
  const Buffer workspace(AttentionWorkspaceBytes(limits, kHeadDim));
  const AttentionImage at(limits);
  const auto cache = [&](int i) {
    return PagedKv{caches[2 * (i % layers)]->as<void>(),
                   caches[2 * (i % layers) + 1]->as<void>(),
                   format,
                   e4m3 ? 0.01f : 1.f,
                   e4m3 ? 0.01f : 1.f,
                   kPageSize,
                   model.kv_heads,
                   kHeadDim};
  };
  const std::string suffix = e4m3 ? " e4m3" : " bf16";
  const double heads = model.heads + 2.0 * model.kv_heads;
  Print(model, "rotary+append" + suffix, tokens,
        GraphMicroseconds(32,
                          [&](cudaStream_t stream, int i) {
                            return RotateAndAppend(
                                {qkv.as<__nv_bfloat16>(), device_image.as<int32_t>() + at.positions,
                                 device_image.as<int32_t>() + at.slots, frequencies.as<float>(),
                                 tokens, model.heads},
                                cache(i), q.as<__nv_bfloat16>(), stream);
                          }),
        tokens * kHeadDim * (heads * 2 + model.heads * 2.0 + model.kv_heads * (e4m3 ? 2.0 : 4.0)));
  const double us = GraphMicroseconds(16, [&](cudaStream_t stream, int i) {
    return AttendQuantize(
        {*plan, device_image.as<int32_t>(), cache(i), q.as<__nv_bfloat16>(), workspace.as<void>()},
        codes.as<uint8_t>(), scales.as<float>(), stream);
  });
  Print(
      model, "attention " + std::to_string(length) + suffix, tokens, us,
      2.0 * sequences * length * model.kv_heads * kHeadDim * (e4m3 ? 1 : 2) + tokens * width * 3.0);
  if (regime == AttentionRegime::kPrefill) {
    const double seen = queries * (length - (queries - 1) / 2.0);
    std::printf("%38s %.0f TFLOP/s\n", "", 4.0 * sequences * seen * width / us / 1e6);
  }
}

int Main() {
  cudaDeviceProp device;
  OrDie(cudaGetDeviceProperties(&device, 0));
  std::printf("%s\n%-11s %-26s %6s %9s\n", device.name, "model", "kernel", "tokens", "us");
  for (const Model& model : kModels) {
    for (const int tokens : {1, 16, 64, 256}) {
      BenchRows(model, tokens);
      BenchSampling(model, tokens);
      for (const KvFormat format : {KvFormat::kBf16, KvFormat::kE4M3}) {
        BenchAttention(model, AttentionRegime::kDecode, tokens, 1, 1024, format);
      }
    }
    BenchAttention(model, AttentionRegime::kDecode, 1, 1, 16384, KvFormat::kBf16);
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kE4M3}) {
      BenchAttention(model, AttentionRegime::kPrefill, 1, 2048, 2048, format);
      BenchAttention(model, AttentionRegime::kPrefill, 1, 512, 8192, format);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  if (argc > 1) {
    std::printf(
        "usage: neighbours_bench\n\nTimes the kernels beside the linears for LLaMA-7B and "
        "LLaMA-3-8B shapes at 1, 16, 64 and\n256 tokens, 1,024 tokens of context, on the first "
        "GPU.\n\nexample:\n  build/cuda/bin/neighbours_bench\n");
    return std::strcmp(argv[1], "--help") == 0 ? 0 : 2;
  }
  return nibble::Main();
}
