// What the load generators have in common: their command line, and a load for each point of it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/bench/load/load_run.h"

namespace nibble {

struct LoadOptions {
  std::vector<std::string> mixes = {"128/128"};
  std::vector<int64_t> concurrencies;  // closed loops
  std::vector<double> rates;           // open loops
  int64_t requests = 0;                // 0: four for each at once, 32 of an open loop
  double limit_seconds = 600;
  uint64_t seed = 1;
  std::filesystem::path json;
};

// `options` outlives the parse.
void AddLoadOptions(CLI::App& app, LoadOptions& options);

// Before a model is made for them.
absl::Status CheckLoadOptions(const LoadOptions& options);

// After a short request to warm up, every mix at every concurrency and rate: a table on stdout,
// progress on stderr, and a line of JSON for each point at the end of options.json.
absl::Status RunLoads(LoadTarget& target, const LoadOptions& options, const std::string& bench,
                      const std::string& model);

// The exit code; a status that isn't OK is told on stderr.
int ExitCode(const std::string& program, const absl::Status& status);

}  // namespace nibble
