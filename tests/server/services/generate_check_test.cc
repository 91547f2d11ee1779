#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "server/services/generate.h"

namespace nibble {
namespace {

using Change = std::function<void(v1::GenerateRequest&)>;

absl::Status Check(const Change& change) {
  v1::GenerateRequest request;
  request.set_model("m");
  request.set_text("t");
  change(request);
  return CheckGenerate(request);
}

void ExpectRefused(const Change& change, const std::string& message) {
  const absl::Status status = Check(change);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_EQ(std::string(status.message()), message);
}

TEST(CheckGenerate, LimitsAreTheDocumentedOnes) {
  EXPECT_TRUE(Check([](auto&) {}).ok());
  const auto at_limits = [](v1::GenerateRequest& r) {
    r.mutable_sampling()->set_temperature(100);
    r.mutable_sampling()->set_top_p(1);
    r.mutable_sampling()->set_min_p(1);
    r.mutable_sampling()->set_presence_penalty(-2);
    r.mutable_sampling()->set_frequency_penalty(2);
    (*r.mutable_sampling()->mutable_logit_bias())[3] = -100;
    r.set_n(64);
    r.set_max_tokens(7);
    r.set_min_tokens(7);
    r.set_logprobs(20);
    r.add_stop(std::string(256, 'x'));
  };
  EXPECT_TRUE(Check(at_limits).ok());
}

TEST(CheckGenerate, EachRefusalNamesFieldFoundAndExpected) {
  const auto sampling = [](void (*set)(v1::Sampling&)) {
    return [set](v1::GenerateRequest& r) { set(*r.mutable_sampling()); };
  };
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_temperature(NAN); }),
                "sampling.temperature: found nan, expected 0 to 100");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_temperature(-1); }),
                "sampling.temperature: found -1, expected 0 to 100");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_top_k(-1); }),
                "sampling.top_k: found -1, expected 0 or more");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_top_p(0); }),
                "sampling.top_p: found 0, expected over 0, at most 1");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_top_p(NAN); }),
                "sampling.top_p: found nan, expected over 0, at most 1");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_min_p(2); }),
                "sampling.min_p: found 2, expected 0 to 1");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_repetition_penalty(0); }),
                "sampling.repetition_penalty: found 0, expected over 0, finite");
  ExpectRefused(sampling([](v1::Sampling& s) { s.set_presence_penalty(3); }),
                "sampling.presence_penalty: found 3, expected -2 to 2");
  ExpectRefused(sampling([](v1::Sampling& s) { (*s.mutable_logit_bias())[1] = INFINITY; }),
                "sampling.logit_bias: found inf, expected -100 to 100");
  ExpectRefused([](v1::GenerateRequest& r) { r.set_n(65); }, "n: found 65, expected 1 to 64");
  ExpectRefused([](v1::GenerateRequest& r) { r.set_n(0); }, "n: found 0, expected 1 to 64");
  ExpectRefused([](v1::GenerateRequest& r) { r.set_max_tokens(-1); },
                "max_tokens: found -1, expected 0 or more");
  ExpectRefused(
      [](v1::GenerateRequest& r) {
        r.set_max_tokens(3);
        r.set_min_tokens(4);
      },
      "min_tokens: found 4, expected 0 to max_tokens");
  ExpectRefused([](v1::GenerateRequest& r) { r.add_stop(""); },
                "stop: found one of 0 bytes, expected strings of 1 to 256 bytes");
  ExpectRefused([](v1::GenerateRequest& r) { r.set_logprobs(21); },
                "logprobs: found 21, expected 0 to 20");
  ExpectRefused([](v1::GenerateRequest& r) { r.set_request_id(std::string(129, 'r')); },
                "request_id: found 129 bytes, expected at most 128");
}

TEST(CheckGenerate, WhatIsNotServedIsRefusedByName) {
  const absl::Status status =
      Check([](v1::GenerateRequest& r) { r.mutable_grammar()->set_regex("a+"); });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message().substr(0, 8), "grammar:");
  EXPECT_EQ(Check([](v1::GenerateRequest& r) { r.set_version(2); }).code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
