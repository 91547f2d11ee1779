// What a load generator asks for, and when. The same seed gives the same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nibble {

// How long requests are, in tokens.
struct Mix {
  int64_t prefix = 0;  // that all of them begin with
  int64_t prompt = 0;  // of their own, behind it
  int64_t output = 0;

  bool operator==(const Mix&) const = default;
};

// "PROMPT/OUTPUT" or "PREFIX+PROMPT/OUTPUT": "128/128", "1000+128/128". INVALID_ARGUMENT for
// others.
absl::StatusOr<Mix> ParseMix(std::string_view text);
std::string MixName(const Mix& mix);

struct LoadRequest {
  std::vector<int32_t> prompt;  // random ids below 256, which every vocabulary has
  int64_t max_tokens = 0;
};

std::vector<LoadRequest> MakeRequests(const Mix& mix, int64_t count, uint64_t seed);

// Of a Poisson process of `rate` requests a second: when each comes, after the start.
std::vector<absl::Duration> PoissonArrivals(double rate, int64_t count, uint64_t seed);

}  // namespace nibble
