#include "tests/bench/load/workload.h"

#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr uint64_t kTokenIds = 256;

void AppendTokens(int64_t count, std::mt19937_64& random, std::vector<int32_t>& tokens) {
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random() % kTokenIds));
}

bool ParsePrompt(absl::string_view text, Mix& mix) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, '+');
  if (parts.size() > 2) return false;
  if (parts.size() == 2 && (!absl::SimpleAtoi(parts[0], &mix.prefix) || mix.prefix < 1)) {
    return false;
  }
  return absl::SimpleAtoi(parts.back(), &mix.prompt) && mix.prompt > 0;
}

}  // namespace

absl::StatusOr<Mix> ParseMix(std::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(ToAbsl(text), '/');
  Mix mix;
  if (parts.size() == 2 && ParsePrompt(parts[0], mix) && absl::SimpleAtoi(parts[1], &mix.output) &&
      mix.output > 0) {
    return mix;
  }
  return absl::InvalidArgumentError(
      StrCat("mix: found \"", text, "\", expected PROMPT/OUTPUT or PREFIX+PROMPT/OUTPUT tokens"));
}

std::string MixName(const Mix& mix) {
  return StrCat(mix.prefix > 0 ? StrCat(mix.prefix, "+") : "", mix.prompt, "/", mix.output);
}

std::vector<LoadRequest> MakeRequests(const Mix& mix, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> prefix;
  AppendTokens(mix.prefix, random, prefix);
  std::vector<LoadRequest> requests(count);
  for (LoadRequest& request : requests) {
    request.prompt = prefix;
    AppendTokens(mix.prompt, random, request.prompt);
    request.max_tokens = mix.output;
  }
  return requests;
}

std::vector<absl::Duration> PoissonArrivals(double rate, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> gap(rate);
  std::vector<absl::Duration> arrivals(count);
  double seconds = 0;
  for (absl::Duration& arrival : arrivals) {
    seconds += gap(random);
    arrival = absl::Seconds(seconds);
  }
  return arrivals;
}

}  // namespace nibble
