// What a job needs, told before it runs: from the checkpoint's config, names and shapes alone, in
// milliseconds. Torch-free, so that the server can include it.
#pragma once

#include <cstdint>
#include <filesystem>

#include "absl/status/statusor.h"
#include "quant/base/device.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// Where a job runs.
struct Place {
  Device device;
  int threads = 1;  // CPU threads
  // All that there is, bytes; 0: not known, and taken for enough.
  int64_t host_memory = 0;
  int64_t device_memory = 0;
};

struct QuantizeEstimate {
  // Peaks. Host memory beyond the page cache, the process itself included; device memory is 0 on a
  // CPU.
  int64_t host_bytes = 0;
  int64_t device_bytes = 0;
  // Files of the artifact, an upper bound: its tensors exactly, its texts generously.
  int64_t artifact_bytes = 0;
  // Most that is on disk while the job runs: the artifact, staged, the record of its layers, and
  // the hidden states that memory does not hold.
  int64_t disk_bytes = 0;
  // By stated rates of the hardware (job_time.cc), on a machine that does nothing else.
  double seconds = 0;
  double linear_bits_per_weight = 0;
};

// Of a job that CheckQuantizeSpec has passed.
absl::StatusOr<QuantizeEstimate> EstimateQuantize(const QuantizeSpec& spec,
                                                  const std::filesystem::path& checkpoint,
                                                  const Place& place);

}  // namespace nibble
