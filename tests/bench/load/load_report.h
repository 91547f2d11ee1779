// A load's result as a line of a table, for people, and as a line of JSON, for plot.py.
#pragma once

#include <cstdint>
#include <string>

#include "tests/bench/load/measurement.h"
#include "tests/bench/load/workload.h"

namespace nibble {

struct LoadPoint {
  std::string bench;  // "engine" or "grpc"
  std::string model;
  Mix mix;
  int64_t concurrency = 0;  // 0: open loop
  double rate = 0;          // open loop: requests a second
  LoadResult result;
  double processor_us_per_token = 0;  // of the process that answers; 0: not known
};

// "8 at once" or "0.5 a second".
std::string LoadName(const LoadPoint& point);
std::string TableHeader();
std::string TableLine(const LoadPoint& point);
std::string JsonLine(const LoadPoint& point);

}  // namespace nibble
