#include <cmath>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/names.h"
#include "server/services/generate.h"
#include "server/services/score.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

constexpr int kMostChoices = 64;
constexpr int kMostStops = 16;
constexpr size_t kLongestStop = 256;
constexpr int kMostStopTokens = 64;
constexpr int kMostBiases = 1024;
constexpr int kMostLogprobs = 20;

template <class Found>
absl::Status Require(bool good, std::string_view field, const Found& found,
                     std::string_view expected) {
  if (good) return absl::OkStatus();
  return FieldError(absl::StatusCode::kInvalidArgument, field, StrCat(found), expected);
}

absl::Status CheckLogprobs(std::string_view field, int32_t count) {
  return Require(count >= 0 && count <= kMostLogprobs, field, count,
                 StrCat("0 to ", kMostLogprobs));
}

absl::Status CheckSampling(const v1::Sampling& s) {
  NIBBLE_RETURN_IF_ERROR(Require(s.temperature() >= 0 && s.temperature() <= 100,
                                 "sampling.temperature", s.temperature(), "0 to 100"));
  NIBBLE_RETURN_IF_ERROR(Require(s.top_k() >= 0, "sampling.top_k", s.top_k(), "0 or more"));
  NIBBLE_RETURN_IF_ERROR(Require(!s.has_top_p() || (s.top_p() > 0 && s.top_p() <= 1),
                                 "sampling.top_p", s.top_p(), "over 0, at most 1"));
  NIBBLE_RETURN_IF_ERROR(
      Require(s.min_p() >= 0 && s.min_p() <= 1, "sampling.min_p", s.min_p(), "0 to 1"));
  NIBBLE_RETURN_IF_ERROR(
      Require(!s.has_repetition_penalty() ||
                  (std::isfinite(s.repetition_penalty()) && s.repetition_penalty() > 0),
              "sampling.repetition_penalty", s.repetition_penalty(), "over 0, finite"));
  NIBBLE_RETURN_IF_ERROR(Require(std::abs(s.presence_penalty()) <= 2, "sampling.presence_penalty",
                                 s.presence_penalty(), "-2 to 2"));
  NIBBLE_RETURN_IF_ERROR(Require(std::abs(s.frequency_penalty()) <= 2, "sampling.frequency_penalty",
                                 s.frequency_penalty(), "-2 to 2"));
  NIBBLE_RETURN_IF_ERROR(Require(s.logit_bias_size() <= kMostBiases, "sampling.logit_bias",
                                 s.logit_bias_size(), StrCat("at most ", kMostBiases, " tokens")));
  for (const auto& [token, bias] : s.logit_bias()) {
    NIBBLE_RETURN_IF_ERROR(
        Require(std::abs(bias) <= 100, "sampling.logit_bias", bias, "-100 to 100"));
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
  NIBBLE_RETURN_IF_ERROR(CheckVersion(request.version()));
  NIBBLE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  NIBBLE_RETURN_IF_ERROR(
      Require(!request.has_n() || (request.n() >= 1 && request.n() <= kMostChoices), "n",
              request.n(), StrCat("1 to ", kMostChoices)));
  NIBBLE_RETURN_IF_ERROR(Require(!request.has_max_tokens() || request.max_tokens() >= 0,
                                 "max_tokens", request.max_tokens(), "0 or more"));
  NIBBLE_RETURN_IF_ERROR(
      Require(request.min_tokens() >= 0 &&
                  (!request.has_max_tokens() || request.min_tokens() <= request.max_tokens()),
              "min_tokens", request.min_tokens(), "0 to max_tokens"));
  NIBBLE_RETURN_IF_ERROR(Require(request.stop_size() <= kMostStops, "stop", request.stop_size(),
                                 StrCat("at most ", kMostStops, " strings")));
  for (const std::string& stop : request.stop()) {
    NIBBLE_RETURN_IF_ERROR(Require(!stop.empty() && stop.size() <= kLongestStop, "stop",
                                   StrCat("one of ", stop.size(), " bytes"),
                                   StrCat("strings of 1 to ", kLongestStop, " bytes")));
  }
  NIBBLE_RETURN_IF_ERROR(Require(request.stop_token_ids_size() <= kMostStopTokens, "stop_token_ids",
                                 request.stop_token_ids_size(),
                                 StrCat("at most ", kMostStopTokens)));
  NIBBLE_RETURN_IF_ERROR(CheckLogprobs("logprobs", request.logprobs()));
  return CheckLogprobs("prompt_logprobs", request.prompt_logprobs());
}

absl::Status CheckScore(const v1::ScoreRequest& request) {
  NIBBLE_RETURN_IF_ERROR(CheckVersion(request.version()));
  NIBBLE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  return CheckLogprobs("top_logprobs", request.top_logprobs());
}

}  // namespace nibble
