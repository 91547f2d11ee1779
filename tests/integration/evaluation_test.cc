// The built nibbled as a server of evaluations and profiles, driven over gRPC as a client does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/integration/serving_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class EvaluationTest : public ServingTest {
 protected:
  static v1::EvaluatePerplexityRequest Evaluation(const std::string& corpus, int window) {
    v1::EvaluatePerplexityRequest request;
    request.set_model("tiny");
    request.mutable_corpus()->set_name(corpus);
    request.set_window(window);
    return request;
  }
  grpc::Status Evaluate(const v1::EvaluatePerplexityRequest& request,
                        std::vector<v1::EvaluatePerplexityResponse>& messages) {
    grpc::ClientContext context;
    const auto reader = evaluation_->EvaluatePerplexity(&context, request);
    return ReadAll(*reader, messages);
  }
  static v1::ProfileActivationsRequest ProfileRequest(int window) {
    v1::ProfileActivationsRequest request;
    request.set_model("tiny");
    request.mutable_corpus()->set_name("text.txt");
    request.set_window(window);
    request.set_windows(1);
    return request;
  }
  grpc::Status Profile(const v1::ProfileActivationsRequest& request,
                       std::vector<v1::ProfileActivationsResponse>& messages) {
    grpc::ClientContext context;
    const auto reader = evaluation_->ProfileActivations(&context, request);
    return ReadAll(*reader, messages);
  }
};

TEST_F(EvaluationTest, AnEvaluationShowsProgressAndGivesTheSameTwice) {
  std::vector<v1::EvaluatePerplexityResponse> first;
  ASSERT_TRUE(Evaluate(Evaluation("text.txt", 500), first).ok());
  const v1::EvaluatePerplexityResponse& last = first.back();
  EXPECT_TRUE(last.done());
  EXPECT_EQ(last.windows_total(), 12);
  EXPECT_EQ(last.windows_done(), 12);
  EXPECT_EQ(last.tokens(), 12 * 499);
  EXPECT_NEAR(last.perplexity(), std::exp(last.negative_log_likelihood()), 1e-9);
  EXPECT_GT(last.perplexity(), 1);
  EXPECT_EQ(first.size(), 13u);  // the start, then one a window
  std::vector<v1::EvaluatePerplexityResponse> second;
  ASSERT_TRUE(Evaluate(Evaluation("text.txt", 500), second).ok());
  EXPECT_EQ(second.back().perplexity(), last.perplexity());
}

TEST_F(EvaluationTest, AScoreIsTheEvaluationOfItsText) {
  std::ifstream file(folder_.path() / "corpora" / "text.txt");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::vector<v1::EvaluatePerplexityResponse> messages;
  v1::EvaluatePerplexityRequest evaluation = Evaluation("text.txt", 900);
  evaluation.set_windows(1);
  ASSERT_TRUE(Evaluate(evaluation, messages).ok());
  v1::ScoreRequest request;
  request.set_model("tiny");
  request.set_text(text.substr(0, 900));
  request.set_top_logprobs(3);
  v1::ScoreResponse score;
  grpc::ClientContext context;
  ASSERT_TRUE(inference_->Score(&context, request, &score).ok());
  EXPECT_EQ(score.token_ids_size(), 900);
  ASSERT_EQ(score.logprobs_size(), 899);
  // Logprobs are rounded to f32 before they are added here.
  EXPECT_NEAR(score.negative_log_likelihood(), messages.back().negative_log_likelihood(), 1e-6);
  EXPECT_NEAR(score.perplexity(), messages.back().perplexity(), 1e-4);
  for (int i = 0; i < score.logprobs_size(); ++i) {
    const v1::TokenLogprob& logprob = score.logprobs(i);
    EXPECT_EQ(logprob.token_id(), score.token_ids(i + 1));
    ASSERT_EQ(logprob.top_size(), 3);
    EXPECT_LE(logprob.logprob(), logprob.top(0).logprob());
  }
  const auto refuse = [&](const v1::ScoreRequest& bad, const std::string& words) {
    grpc::ClientContext again;
    const grpc::Status status = inference_->Score(&again, bad, &score);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(words));
  };
  request.set_text("a");
  refuse(request, "input: found 1 tokens");
  request.set_text("ab");
  request.set_top_logprobs(21);
  refuse(request, "top_logprobs: found 21");
}

TEST_F(EvaluationTest, AnEvaluationIsTheMeanOfScoredPrompts) {
  std::vector<v1::EvaluatePerplexityResponse> messages;
  v1::EvaluatePerplexityRequest request = Evaluation("text.txt", 700);
  request.set_windows(2);
  ASSERT_TRUE(Evaluate(request, messages).ok());
  std::ifstream file(folder_.path() / "corpora" / "text.txt");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  double sum = 0;
  for (int window = 0; window < 2; ++window) {
    v1::GenerateRequest score = TinyRequest(text.substr(static_cast<size_t>(window) * 700, 700), 0);
    score.set_prompt_logprobs(0);
    for (const auto& message : Generate(score).messages) {
      for (const auto& logprob : message.prompt_logprobs()) sum -= logprob.logprob();
    }
  }
  // Logprobs cross the wire as f32: half a unit of 2^-24 on each of about 6.
  EXPECT_NEAR(messages.back().negative_log_likelihood(), sum / (2 * 699), 1e-6);
}

TEST_F(EvaluationTest, ACancelledEvaluationFreesItsModel) {
  v1::EvaluatePerplexityRequest request = Evaluation("text.txt", 2000);
  grpc::ClientContext context;
  const auto reader = evaluation_->EvaluatePerplexity(&context, request);
  v1::EvaluatePerplexityResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  v1::GetModelRequest get;
  get.set_name("tiny");
  v1::Model model;
  do {
    grpc::ClientContext again;
    ASSERT_TRUE(models_->GetModel(&again, get, &model).ok());
  } while (model.versions(0).state() != v1::MODEL_STATE_STORED);
}

TEST_F(EvaluationTest, BadEvaluationsAreRefusedByField) {
  const auto refuse = [&](const v1::EvaluatePerplexityRequest& request, grpc::StatusCode code,
                          const std::string& words) {
    std::vector<v1::EvaluatePerplexityResponse> messages;
    const grpc::Status status = Evaluate(request, messages);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(words));
  };
  refuse(Evaluation("none.txt", 100), grpc::StatusCode::NOT_FOUND,
         "corpus.name: found \"none.txt\"");
  refuse(Evaluation("../text.txt", 100), grpc::StatusCode::INVALID_ARGUMENT, "corpus.name");
  refuse(Evaluation("text.txt", 1), grpc::StatusCode::INVALID_ARGUMENT, "window: found 1");
  refuse(Evaluation("text.txt", kContext + 1), grpc::StatusCode::INVALID_ARGUMENT,
         "window: found 2049");
  v1::EvaluatePerplexityRequest request = Evaluation("text.txt", 2000);
  request.set_windows(4);
  refuse(request, grpc::StatusCode::INVALID_ARGUMENT, "windows: found text for 3");
  request = Evaluation("texts.jsonl", 50);
  request.mutable_corpus()->set_first_text(2);
  request.mutable_corpus()->set_last_text(4);
  refuse(request, grpc::StatusCode::OUT_OF_RANGE, "corpus.last_text: found 4, expected at most 3");
  request = Evaluation("texts.jsonl", 50);
  request.mutable_corpus()->set_first_text(0);
  refuse(request, grpc::StatusCode::INVALID_ARGUMENT, "corpus.first_text: found 0");
  request = Evaluation("text.txt", 50);
  request.mutable_corpus()->set_first_text(1);
  refuse(request, grpc::StatusCode::INVALID_ARGUMENT, "corpus");
  request = Evaluation("text.txt", 50);
  request.set_version(7);
  refuse(request, grpc::StatusCode::NOT_FOUND, "version: found 7");
}

TEST_F(EvaluationTest, AProfileComesLayerByLayerAndItsPlacementsAreTheRequests) {
  v1::ProfileActivationsRequest request = ProfileRequest(100);
  request.set_windows(3);
  request.set_histogram_bins(10);
  request.set_placement_token(250);
  std::vector<v1::ProfileActivationsResponse> messages;
  ASSERT_TRUE(Profile(request, messages).ok());
  ASSERT_EQ(messages.size(), 10u);  // the start, two layers of four sites, the end
  EXPECT_EQ(messages.front().layers_total(), 2);
  EXPECT_TRUE(messages.back().done());
  for (int i = 0; i < 8; ++i) {
    const v1::ProfileActivationsResponse& message = messages[static_cast<size_t>(i) + 1];
    EXPECT_EQ(message.layers_done(), i / 4 + 1);
    EXPECT_FALSE(message.done());
    const v1::ActivationProfile& profile = message.profile();
    EXPECT_EQ(profile.layer(), i / 4);
    EXPECT_EQ(profile.site(), i % 4 + 1);
    EXPECT_EQ(profile.tokens(), 300);
    int64_t counted = 0;
    for (const int64_t count : profile.histogram().counts()) counted += count;
    EXPECT_EQ(counted, 300 * profile.channels());
    EXPECT_EQ(profile.histogram().counts_size(), 10);
    ASSERT_EQ(profile.quantiles_size(), 11);
    EXPECT_EQ(profile.quantiles(0).value(), profile.min());
    EXPECT_EQ(profile.quantiles(10).value(), profile.max());
    ASSERT_EQ(profile.placements_size(), 3);
    const v1::Placement& integer = profile.placements(0);
    EXPECT_EQ(integer.format().format(), v1::ACTIVATION_FORMAT_INT8);
    EXPECT_FALSE(integer.format().symmetric());
    EXPECT_EQ(integer.values_size(), profile.channels());
    EXPECT_GT(integer.relative_error(), 0);
    // Two mantissa bits err about twice what three do.
    EXPECT_GT(profile.placements(2).relative_error(), profile.placements(1).relative_error());
  }

  request.clear_placement_token();
  request.add_layers(1);
  request.add_sites(v1::ACTIVATION_SITE_MLP_OUTPUT);
  std::vector<v1::ProfileActivationsResponse> one;
  ASSERT_TRUE(Profile(request, one).ok());
  ASSERT_EQ(one.size(), 4u);  // the start, the first layer passed, a profile, the end
  EXPECT_EQ(one[2].profile().kurtosis(), messages[8].profile().kurtosis());
  EXPECT_EQ(one[2].profile().placements_size(), 0);
}

TEST_F(EvaluationTest, ACancelledProfileLetsTheNextOneRun) {
  v1::ProfileActivationsRequest request = ProfileRequest(2000);
  request.set_windows(3);
  grpc::ClientContext context;
  const auto reader = evaluation_->ProfileActivations(&context, request);
  v1::ProfileActivationsResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  std::vector<v1::ProfileActivationsResponse> messages;
  EXPECT_TRUE(Profile(ProfileRequest(50), messages).ok());
  AwaitMetric("nibble_rpcs_total{code=\"CANCELLED\",method=\"ProfileActivations\"} 1\n");
}

TEST_F(EvaluationTest, BadProfilesAreRefusedByField) {
  const auto refuse = [&](const v1::ProfileActivationsRequest& request, grpc::StatusCode code,
                          const std::string& words) {
    std::vector<v1::ProfileActivationsResponse> messages;
    const grpc::Status status = Profile(request, messages);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(words));
  };
  const grpc::StatusCode invalid = grpc::StatusCode::INVALID_ARGUMENT;
  v1::ProfileActivationsRequest request = ProfileRequest(50);
  request.set_model("nobody");
  refuse(request, grpc::StatusCode::NOT_FOUND, "model: found \"nobody\"");
  request = ProfileRequest(50);
  request.mutable_corpus()->set_name("none.txt");
  refuse(request, grpc::StatusCode::NOT_FOUND, "corpus.name: found \"none.txt\"");
  request = ProfileRequest(50);
  request.set_version(3);
  refuse(request, grpc::StatusCode::NOT_FOUND, "version: found 3");
  request = ProfileRequest(1);
  refuse(request, invalid, "window: found 1, expected 2 to");
  request = ProfileRequest(50);
  request.add_layers(2);
  refuse(request, invalid, "layers: found 2, expected 0 to 1");
  request = ProfileRequest(50);
  request.add_sites(static_cast<v1::ActivationSite>(9));
  refuse(request, invalid, "sites: found 9");
  request = ProfileRequest(50);
  request.add_placement_formats()->set_format(v1::ACTIVATION_FORMAT_E4M3);
  refuse(request, invalid, "placement_formats: found 1, expected none without placement_token");
  request.set_placement_token(0);
  request.mutable_placement_formats(0)->set_format(v1::ACTIVATION_FORMAT_NONE);
  refuse(request, invalid, "placement_formats.format: found ACTIVATION_FORMAT_NONE");
  request.mutable_placement_formats(0)->set_format(v1::ACTIVATION_FORMAT_E4M3);
  request.mutable_placement_formats(0)->set_symmetric(true);
  refuse(request, invalid, "placement_formats.symmetric: found true");
}

}  // namespace
}  // namespace nibble
