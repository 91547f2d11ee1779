// How the daemon's runners are made: in its process, or by this program again in the role `runner`.
#pragma once

#include "server/ops/config.h"
#include "server/ops/metrics.h"
#include "server/registry/registry.h"
#include "server/runner/model_runner.h"

namespace nibble {

RunnerOptions RunnerOptionsOf(const Config& config);

// Counts in `metrics`, which it outlives.
Registry::RunnerMaker MakerOf(const Config& config, Metrics& metrics);

// The role `runner`, until the daemon ends it: the exit code.
int RunAsRunner(const Config& config);

}  // namespace nibble
