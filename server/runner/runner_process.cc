#include "server/runner/runner_process.h"

#include <string>

#include "quant/base/status_macros.h"
#include "server/ops/child_process.h"
#include "server/runner/messages.h"
#include "server/runner/step_codec.h"

namespace nibble {
namespace {

// Sends `told`, and returns it.
absl::Status Tell(int socket, MessageKind kind, const absl::Status& told) {
  std::string message;
  Encode(told, message);
  NIBBLE_RETURN_IF_ERROR(SendMessage(socket, kind, message));
  return told;
}

}  // namespace

absl::Status ServeRunner(int socket, const ServedRunner& served) {
  EndWithSocket(socket);
  const absl::StatusOr<std::unique_ptr<ModelRunner>> loaded = served.load();
  if (!loaded.ok()) return Tell(socket, MessageKind::kFailed, loaded.status());
  ModelRunner& runner = **loaded;
  std::string message;
  Encode(RunnerFacts{.pool = runner.kv_pool(),
                     .context = runner.context(),
                     .vocab_size = runner.vocab_size(),
                     .weight_bytes = runner.weight_bytes()},
         message);
  NIBBLE_RETURN_IF_ERROR(SendMessage(socket, MessageKind::kReady, message));
  StepInputs inputs;
  while (true) {
    const absl::Status received = ReceiveMessage(socket, message).status();
    if (absl::IsUnavailable(received)) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(received);
    NIBBLE_RETURN_IF_ERROR(Decode(message, inputs));
    const absl::StatusOr<StepOutputs> outputs = runner.Step(inputs);
    if (outputs.ok()) {
      Encode(*outputs, message);
      NIBBLE_RETURN_IF_ERROR(SendMessage(socket, MessageKind::kOutputs, message));
    } else if (served.check_device().ok()) {
      (void)Tell(socket, MessageKind::kFailed, outputs.status());
    } else {
      return Tell(socket, MessageKind::kBroken, outputs.status());
    }
  }
}

}  // namespace nibble
