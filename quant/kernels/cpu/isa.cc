#include "quant/kernels/cpu/isa.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace nibble {
namespace {

Isa ChooseIsa() {
  const std::vector<Isa> available = AvailableIsas();
  const char* wanted = std::getenv("NIBBLE_CPU_ISA");
  if (wanted == nullptr) return available.back();
  const auto found = std::find_if(available.begin(), available.end(),
                                  [&](Isa isa) { return IsaName(isa) == wanted; });
  if (found != available.end()) return *found;
  std::string expected;
  for (const Isa isa : available) expected += ' ' + std::string(IsaName(isa));
  std::fprintf(stderr, "NIBBLE_CPU_ISA: found %s, expected one of:%s\n", wanted, expected.c_str());
  std::exit(2);
}

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  __builtin_unreachable();
}

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas = {Isa::kPortable};
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isas;
  isas.push_back(Isa::kAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    isas.push_back(Isa::kAvx512);
    if (__builtin_cpu_supports("avx512bf16")) isas.push_back(Isa::kAvx512Bf16);
  }
  return isas;
}

Isa ActiveIsa() {
  static const Isa isa = ChooseIsa();
  return isa;
}

const TileKernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return kPortableKernels;
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
  }
  __builtin_unreachable();
}

}  // namespace nibble
