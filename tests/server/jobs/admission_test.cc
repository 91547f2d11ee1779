#include "server/jobs/admission.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr Resources kMachine = {
    .memory_bytes = 24 * kGiB, .device_bytes = 80 * kGiB, .disk_free_bytes = 100 * kGiB};

TEST(AdmissionTest, WhatIsThereToTheLastByteFits) {
  QuantizeEstimate estimate;
  estimate.host_bytes = kMachine.memory_bytes;
  estimate.device_bytes = kMachine.device_bytes;
  estimate.disk_bytes = kMachine.disk_free_bytes;
  EXPECT_EQ(CheckFits(estimate, kMachine), absl::OkStatus());
}

TEST(AdmissionTest, WhatFallsShortIsNamedWithFoundAndNeeded) {
  QuantizeEstimate host;
  host.host_bytes = 25 * kGiB;
  EXPECT_EQ(CheckFits(host, kMachine),
            absl::ResourceExhaustedError(
                "host memory: found 24.00 GiB, expected at least 25.00 GiB for this job"));
  QuantizeEstimate device;
  device.device_bytes = 80 * kGiB + 1;
  EXPECT_EQ(CheckFits(device, kMachine).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CheckFits(device, kMachine).message().substr(0, 13), "device memory");
  QuantizeEstimate disk;
  disk.disk_bytes = 150 * kGiB;
  EXPECT_EQ(CheckFits(disk, kMachine),
            absl::ResourceExhaustedError(
                "free disk: found 100.00 GiB, expected at least 150.00 GiB for this job"));
}

TEST(AdmissionTest, AGpuThatHasNotToldItsMemoryIsNotHeldAgainstTheJob) {
  QuantizeEstimate estimate;
  estimate.device_bytes = 80 * kGiB;
  Resources unknown = kMachine;
  unknown.device_bytes = 0;
  EXPECT_EQ(CheckFits(estimate, unknown), absl::OkStatus());
}

}  // namespace
}  // namespace nibble
