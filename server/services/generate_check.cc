#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/names.h"
#include "server/services/generate.h"

namespace nibble {
namespace {

constexpr int kMostChoices = 64;
constexpr int kMostStops = 16;
constexpr int kMostLogprobs = 20;

template <class Found>
absl::Status Require(bool good, std::string_view field, const Found& found,
                     std::string_view expected) {
  if (good) return absl::OkStatus();
  return FieldError(absl::StatusCode::kInvalidArgument, field, StrCat(found), expected);
}

absl::Status CheckSampling(const v1::Sampling& s) {
  NIBBLE_RETURN_IF_ERROR(Require(std::isfinite(s.temperature()) && s.temperature() >= 0,
                                 "sampling.temperature", s.temperature(), "0 or more, finite"));
  NIBBLE_RETURN_IF_ERROR(Require(s.top_k() >= 0, "sampling.top_k", s.top_k(), "0 or more"));
  NIBBLE_RETURN_IF_ERROR(Require(!s.has_top_p() || (s.top_p() > 0 && s.top_p() <= 1),
                                 "sampling.top_p", s.top_p(), "over 0, at most 1"));
  NIBBLE_RETURN_IF_ERROR(
      Require(s.min_p() >= 0 && s.min_p() <= 1, "sampling.min_p", s.min_p(), "0 to 1"));
  NIBBLE_RETURN_IF_ERROR(
      Require(!s.has_repetition_penalty() ||
                  (std::isfinite(s.repetition_penalty()) && s.repetition_penalty() > 0),
              "sampling.repetition_penalty", s.repetition_penalty(), "over 0, finite"));
  NIBBLE_RETURN_IF_ERROR(Require(std::isfinite(s.presence_penalty()), "sampling.presence_penalty",
                                 s.presence_penalty(), "a finite number"));
  NIBBLE_RETURN_IF_ERROR(Require(std::isfinite(s.frequency_penalty()), "sampling.frequency_penalty",
                                 s.frequency_penalty(), "a finite number"));
  for (const auto& [token, bias] : s.logit_bias()) {
    NIBBLE_RETURN_IF_ERROR(
        Require(std::isfinite(bias), "sampling.logit_bias", bias, "a finite number"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGenerate(const v1::GenerateRequest& request) {
  if (request.has_grammar()) {
    return FieldError(absl::StatusCode::kUnimplemented, "grammar", "one",
                      "none: grammars are not served by this version");
  }
  NIBBLE_RETURN_IF_ERROR(CheckSampling(request.sampling()));
  NIBBLE_RETURN_IF_ERROR(Require(request.version() == 0 || request.version() == 1, "version",
                                 request.version(), "0 or 1"));
  NIBBLE_RETURN_IF_ERROR(
      Require(!request.has_n() || (request.n() >= 1 && request.n() <= kMostChoices), "n",
              request.n(), StrCat("1 to ", kMostChoices)));
  NIBBLE_RETURN_IF_ERROR(Require(!request.has_max_tokens() || request.max_tokens() >= 0,
                                 "max_tokens", request.max_tokens(), "0 or more"));
  NIBBLE_RETURN_IF_ERROR(
      Require(request.min_tokens() >= 0, "min_tokens", request.min_tokens(), "0 or more"));
  NIBBLE_RETURN_IF_ERROR(Require(request.stop_size() <= kMostStops, "stop", request.stop_size(),
                                 StrCat("at most ", kMostStops, " strings")));
  for (const std::string& stop : request.stop()) {
    NIBBLE_RETURN_IF_ERROR(Require(!stop.empty(), "stop", "\"\"", "strings that are not empty"));
  }
  const auto logprobs = [](int32_t n) { return n >= 0 && n <= kMostLogprobs; };
  NIBBLE_RETURN_IF_ERROR(Require(logprobs(request.logprobs()), "logprobs", request.logprobs(),
                                 StrCat("0 to ", kMostLogprobs)));
  return Require(logprobs(request.prompt_logprobs()), "prompt_logprobs", request.prompt_logprobs(),
                 StrCat("0 to ", kMostLogprobs));
}

}  // namespace nibble
