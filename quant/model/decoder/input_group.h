#pragma once

namespace nibble {

// What a linear's input is shared with: one Hessian each. Into q, k, v; o (OPT: out_proj); gate, up
// (fc1); down (fc2).
enum class InputGroup { kAttentionIn, kAttentionOut, kMlpIn, kMlpOut };

}  // namespace nibble
