// One attempt at a job in a process of its own, which a test may kill or measure: CHECKPOINT
// ARTIFACT CORPUS [ROTATE_SEED]. Says "ready" once it works and "peak BYTES", its most memory, at
// the end.
#include "tests/quant/pipeline/quantize_program.h"

#include <cstdio>
#include <cstdlib>

#include "quant/base/process.h"

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "expected CHECKPOINT ARTIFACT CORPUS [ROTATE_SEED]\n");
    return 2;
  }
  nibble::QuantizeSpec spec = nibble::ProgramSpec(argv[3]);
  if (argc == 5) spec.rotate_seed = std::strtoull(argv[4], nullptr, 10);
  bool ready = false;
  const auto summary = nibble::QuantizeModel(spec, argv[1], argv[2], [&](const nibble::Progress&) {
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
