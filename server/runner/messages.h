// Whole messages over the stream socket between a runner's two processes: what they are, how long,
// and the bytes of step_codec.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// To the child: kStep. From it: first kReady or kFailed, then one answer to each step.
enum class MessageKind : uint32_t {
  kReady = 1,    // RunnerFacts: the model is loaded
  kStep = 2,     // StepInputs
  kOutputs = 3,  // StepOutputs
  kFailed = 4,   // a status: of the load, after which the child ends, or of the step
  kBroken = 5,   // the step's status; the device is lost and the child ends
};

// Waits until all is sent. UNAVAILABLE when the other end is closed.
absl::Status SendMessage(int socket, MessageKind kind, std::string_view bytes);

// Waits for a whole message, whose bytes replace those of `bytes`. UNAVAILABLE at the end of the
// stream, INTERNAL for a header that no SendMessage wrote.
absl::StatusOr<MessageKind> ReceiveMessage(int socket, std::string& bytes);

}  // namespace nibble
