// What fake_runner_program does when a sequence's last new token is one of these.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int32_t kFakeBlockSize = 4;
inline constexpr int32_t kKillToken = 990;       // kill -9 of itself
inline constexpr int32_t kExitToken = 991;       // exits with status 3
inline constexpr int32_t kFailToken = 992;       // the step fails
inline constexpr int32_t kBreakToken = 993;      // the step fails, and the device with it
inline constexpr int32_t kNoOutputsToken = 994;  // answers for no sequence
inline constexpr int32_t kHangToken = 995;       // writes "h" to its descriptor and never answers

}  // namespace nibble
