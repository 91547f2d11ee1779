// One attempt at a job in a process of its own, which a test may kill or measure: CHECKPOINT
// ARTIFACT CORPUS. Says "ready" once it works and "peak BYTES", its most memory, at the end.
#include "tests/quant/pipeline/quantize_program.h"

#include <cstdio>

#include "quant/base/process.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "expected CHECKPOINT ARTIFACT CORPUS\n");
    return 2;
  }
  bool ready = false;
  const auto summary = nibble::QuantizeModel(nibble::ProgramSpec(argv[3]), argv[1], argv[2],
                                             [&](const nibble::Progress&) {
                                               if (!ready) {
                                                 std::puts("ready");
                                                 std::fflush(stdout);
                                               }
                                               ready = true;
                                               return absl::OkStatus();
                                             });
  if (!summary.ok()) std::fprintf(stderr, "%s\n", summary.status().ToString().c_str());
  std::printf("peak %ld\n", nibble::PeakResidentBytes());
  return summary.ok() ? 0 : 1;
}
