// A runner's process with a FakeRunner in it: FakeRunner's blocks, then what the load does, then a
// file descriptor that it keeps open. Some tokens make it fail.
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string_view>

#include "server/runner/runner_process.h"
#include "tests/server/engine/fake_runner.h"
#include "tests/server/runner/fake_runner_tokens.h"

namespace nibble {
namespace {

class FailingRunner : public FakeRunner {
 public:
  FailingRunner(int32_t blocks, int descriptor)
      : FakeRunner({.blocks = blocks, .block_size = kFakeBlockSize, .bytes = blocks * 100}),
        descriptor_(descriptor) {}

  bool works() const { return works_; }

  absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) override {
    for (const SequenceInput& input : inputs.sequences) {
      switch (input.tokens.back()) {
        case kKillToken:
          raise(SIGKILL);
          break;
        case kExitToken:
          _exit(3);
        case kFailToken:
          return absl::InternalError("this step failed");
        case kBreakToken:
          works_ = false;
          return absl::InternalError("the device is lost");
        case kNoOutputsToken:
          return StepOutputs();
        case kHangToken:
          if (write(descriptor_, "h", 1) == 1) pause();
          break;
        default:
          break;
      }
    }
    return FakeRunner::Step(inputs);
  }

 private:
  const int descriptor_;
  bool works_ = true;
};

int Main(char** argv) {
  const std::string_view load = argv[2];
  FailingRunner* loaded = nullptr;
  const ServedRunner served = {
      .load = [&]() -> absl::StatusOr<std::unique_ptr<ModelRunner>> {
        if (load == "dies") raise(SIGKILL);
        if (load == "fails") return absl::DataLossError("tensor x: found 7 bytes, expected 8");
        auto runner = std::make_unique<FailingRunner>(std::atoi(argv[1]), std::atoi(argv[3]));
        loaded = runner.get();
        return runner;
      },
      .check_device =
          [&] { return loaded->works() ? absl::OkStatus() : absl::InternalError("lost"); }};
  return ServeRunner(STDIN_FILENO, served).ok() ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int, char** argv) { return nibble::Main(argv); }
