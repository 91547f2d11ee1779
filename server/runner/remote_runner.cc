#include "server/runner/remote_runner.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/child_process.h"
#include "server/runner/messages.h"
#include "server/runner/step_codec.h"

namespace nibble {
namespace {

// A batch's step should fit the socket: else both sides copy in turns. The system may allow less.
constexpr int kSocketBytes = 1 << 20;

bool HungUp(int socket) {
  pollfd end = {socket, POLLRDHUP, 0};
  return poll(&end, 1, 0) == 1;
}

class RemoteRunner : public ModelRunner {
 public:
  explicit RemoteRunner(RemoteRunnerOptions options) : options_(std::move(options)) {}
  ~RemoteRunner() override {
    if (child_) End();
  }

  absl::Status Load() {
    NIBBLE_ASSIGN_OR_RETURN(facts_, Start());
    return absl::OkStatus();
  }

  KvPool kv_pool() const override { return facts_.pool; }
  int64_t context() const override { return facts_.context; }
  int32_t vocab_size() const override { return facts_.vocab_size; }
  int64_t weight_bytes() const override { return facts_.weight_bytes; }

  int64_t kv_epoch() override {
    if (child_ && HungUp(child_->socket.get())) (void)Died("between steps");
    return epoch_;
  }

  absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) override {
    if (!child_) NIBBLE_RETURN_IF_ERROR(Restart());
    Encode(inputs, message_);
    if (!SendMessage(child_->socket.get(), MessageKind::kStep, message_).ok()) {
      return Died("in a step");
    }
    StepOutputs outputs;
    NIBBLE_RETURN_IF_ERROR(Await(MessageKind::kOutputs, outputs, "in a step"));
    if (outputs.sequences.size() != inputs.sequences.size()) {
      return Lose(absl::InternalError(StrCat("runner: found outputs of ", outputs.sequences.size(),
                                             " sequences, expected ", inputs.sequences.size())));
    }
    deaths_ = 0;
    return outputs;
  }

 private:
  // The next message, which is to be an `expected` one, into `value`; else the status that the
  // child sends instead or that its end is.
  template <class Value>
  absl::Status Await(MessageKind expected, Value& value, std::string_view when) {
    const absl::StatusOr<MessageKind> kind = ReceiveMessage(child_->socket.get(), message_);
    if (absl::IsUnavailable(kind.status())) return Died(when);
    if (!kind.ok()) return Lose(kind.status());
    if (*kind == expected) {
      absl::Status decoded = Decode(message_, value);
      return decoded.ok() ? decoded : Lose(std::move(decoded));
    }
    const bool lives = *kind == MessageKind::kFailed && expected == MessageKind::kOutputs;
    absl::Status told =
        *kind == MessageKind::kFailed || *kind == MessageKind::kBroken
            ? DecodeStatus(message_)
            : absl::InternalError(StrCat("runner: found message ", static_cast<uint32_t>(*kind),
                                         ", expected ", static_cast<uint32_t>(expected)));
    return lives ? told : Lose(std::move(told));
  }

  absl::StatusOr<RunnerFacts> Start() {
    absl::StatusOr<ChildProcess> child =
        StartChild(options_.command(facts_.pool.bytes), options_.environment);
    if (!child.ok()) return Lose(child.status());
    child_ = *std::move(child);
    setsockopt(child_->socket.get(), SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof(kSocketBytes));
    RunnerFacts facts;
    NIBBLE_RETURN_IF_ERROR(Await(MessageKind::kReady, facts, "while it loaded the model"));
    return facts;
  }

  absl::Status Restart() {
    const absl::Duration wait = died_at_ + options_.patience - absl::Now();
    if (deaths_ >= options_.deaths_in_a_row && wait > absl::ZeroDuration()) {
      return absl::UnavailableError(StrCat("runner: found ", deaths_,
                                           " deaths of its process in a row, expected a step "
                                           "between them; it is started again in ",
                                           absl::FormatDuration(absl::Ceil(wait, absl::Seconds(1))),
                                           "; the last one: ", death_.message()));
    }
    options_.on_restart();
    NIBBLE_ASSIGN_OR_RETURN(const RunnerFacts facts, Start());
    const KvPool& pool = facts.pool;
    if (pool.blocks < facts_.pool.blocks || pool.block_size != facts_.pool.block_size) {
      return Lose(absl::ResourceExhaustedError(StrCat(
          "KV cache: found ", pool.blocks, " blocks of ", pool.block_size,
          " tokens in the runner's new process, expected ", facts_.pool.blocks, " of ",
          facts_.pool.block_size, " as in the first one: unload the model and load it again")));
    }
    options_.log("runner: its process was started again");
    return absl::OkStatus();
  }

  // Ends the child, if it has not ended, and tells how it did.
  std::string End() {
    const ChildProcess child = *std::exchange(child_, std::nullopt);
    kill(child.pid, SIGKILL);
    return WaitForChild(child.pid);
  }

  // The child has closed its socket: it has ended, or is about to.
  absl::Status Died(std::string_view when) {
    return Lose(absl::UnavailableError(StrCat("runner: its process ", End(), " ", when)));
  }

  // There is no child any more, for this reason, which is returned.
  absl::Status Lose(absl::Status death) {
    if (child_) End();
    ++epoch_;
    ++deaths_;
    died_at_ = absl::Now();
    death_ = std::move(death);
    options_.log(std::string_view(death_.message().data(), death_.message().size()));
    return death_;
  }

  const RemoteRunnerOptions options_;
  RunnerFacts facts_;                  // of the first child
  std::optional<ChildProcess> child_;  // none: to be started by the next step
  int64_t epoch_ = 0;
  int deaths_ = 0;  // since the last step that was answered
  absl::Time died_at_ = absl::InfinitePast();
  absl::Status death_;   // the last one
  std::string message_;  // kept for its memory
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRemoteRunner(RemoteRunnerOptions options) {
  auto runner = std::make_unique<RemoteRunner>(std::move(options));
  NIBBLE_RETURN_IF_ERROR(runner->Load());
  return runner;
}

}  // namespace nibble
