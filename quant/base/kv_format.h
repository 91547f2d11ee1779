#pragma once

#include <cstdint>

namespace nibble {

// How a GPU's cache holds keys and values.
enum class KvFormat : uint8_t { kBf16, kE4M3 };

}  // namespace nibble
