// Which of this machine's vector instructions the CPU kernels use.
#pragma once

#include <string_view>
#include <vector>

#include "quant/kernels/cpu/tile.h"

namespace nibble {

// kPortable: plain C++, correct on every x86-64 and slow. kAvx2: AVX2 and FMA. kAvx512: AVX-512 F,
// BW, DQ and VL. kAvx512Bf16: also BF16.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view IsaName(Isa isa);  // "portable" "avx2" "avx512" "avx512_bf16"
// What this machine can run, from the slowest to the fastest.
std::vector<Isa> AvailableIsas();
// The fastest, or what the environment variable NIBBLE_CPU_ISA names when the machine can run it;
// an unknown or impossible name ends the process with a message. Read once.
Isa ActiveIsa();
const TileKernels& KernelsOf(Isa isa);

}  // namespace nibble
