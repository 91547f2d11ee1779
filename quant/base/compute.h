#pragma once

namespace nibble {

// How a model is held and multiplied. kF32: weights exactly as stored, f32 arithmetic everywhere.
// kBf16: unquantized weights held in bf16; arithmetic is bf16 on a GPU and f32 on a CPU.
enum class Compute { kBf16, kF32 };

}  // namespace nibble
