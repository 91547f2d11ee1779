// The built nibbled as a server of tokens and evaluations, driven over gRPC as a client does.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nibble/v1/evaluation.grpc.pb.h"
#include "nibble/v1/inference.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr int kContext = 2048;

bool IsWholeUtf8(const std::string& text) {
  size_t follow = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if ((byte & 0xc0) == 0x80) {
      if (follow-- == 0) return false;
    } else {
      if (follow != 0) return false;
      follow = byte < 0x80 ? 0 : byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
    }
  }
  return follow == 0;
}

struct Answer {
  grpc::Status status;
  std::vector<v1::GenerateResponse> messages;

  std::string text(int choice = 0) const {
    std::string all;
    for (const auto& message : messages) {
      if (message.index() == choice) all += message.text();
    }
    return all;
  }
  std::vector<int32_t> tokens(int choice = 0) const {
    std::vector<int32_t> all;
    for (const auto& message : messages) {
      if (message.index() != choice) continue;
      all.insert(all.end(), message.token_ids().begin(), message.token_ids().end());
    }
    return all;
  }
  v1::FinishReason finish(int choice = 0) const {
    v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
    for (const auto& message : messages) {
      if (message.index() == choice && message.finish_reason() != 0) {
        reason = message.finish_reason();
      }
    }
    return reason;
  }
};

class ServingTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::filesystem::path root = folder_.path();
    ASSERT_TRUE(
        WriteTinyLlama({.hidden = 32, .layers = 2, .context = kContext}, root / "models" / "tiny")
            .ok());
    std::filesystem::create_directories(root / "corpora");
    std::ofstream corpus(root / "corpora" / "text.txt");
    for (int i = 0; i < 6000; ++i) corpus << static_cast<char>('a' + i * i % 26);
    std::ofstream lines(root / "corpora" / "texts.jsonl");
    for (int i = 0; i < 3; ++i) lines << R"({"text": ")" << std::string(100, 'x') << "\"}\n";
    corpus.close();
    lines.close();
    daemon_ = std::make_unique<DaemonProcess>(NIBBLED_PATH, root);
    ASSERT_NE(daemon_->grpc_address(), "");
    channel_ = grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials());
    inference_ = v1::InferenceService::NewStub(channel_);
    evaluation_ = v1::EvaluationService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
  }

  static v1::GenerateRequest Request(const std::string& text, int max_tokens) {
    v1::GenerateRequest request;
    request.set_model("tiny");
    request.set_text(text);
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = inference_->Generate(&context, request);
    Answer answer;
    for (v1::GenerateResponse message; reader->Read(&message);) answer.messages.push_back(message);
    answer.status = reader->Finish();
    return answer;
  }
  void ExpectRefused(const v1::GenerateRequest& request, grpc::StatusCode code,
                     const std::string& words) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), code) << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), HasSubstr(words));
  }
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
    for (v1::EvaluatePerplexityResponse message; reader->Read(&message);) {
      messages.push_back(message);
    }
    return reader->Finish();
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
    for (v1::ProfileActivationsResponse message; reader->Read(&message);) {
      messages.push_back(message);
    }
    return reader->Finish();
  }
  // Scrapes until the page says so; the test's own time limit ends a wait in vain.
  void AwaitMetric(const std::string& line) {
    while (Scrape(daemon_->metrics_address()).find(line) == std::string::npos) {
      std::this_thread::yield();
    }
  }

  TempFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::EvaluationService::Stub> evaluation_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

TEST_F(ServingTest, GreedyTokensAreTheSameTwiceAndTheLastMessageHasTheUsage) {
  const Answer first = Generate(Request("some text", 40));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.tokens().size(), 40u);
  EXPECT_EQ(Generate(Request("some text", 40)).tokens(), first.tokens());
  EXPECT_EQ(first.messages.front().start().version(), 1);
  const v1::GenerateResponse& last = first.messages.back();
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.usage().prompt_tokens(), 9);
  EXPECT_EQ(last.usage().completion_tokens(), 40);
  EXPECT_GT(last.timing().total_seconds(), 0);
  for (const auto& message : first.messages) EXPECT_TRUE(IsWholeUtf8(message.text()));
}

TEST_F(ServingTest, APromptThatWasSeenComesFromThePrefixCache) {
  // 100 tokens: six blocks of 16 are known afterwards.
  const v1::GenerateRequest request = Request(std::string(100, 'q'), 8);
  const Answer first = Generate(request);
  EXPECT_EQ(first.messages.back().usage().cached_prompt_tokens(), 0);
  const Answer second = Generate(request);
  EXPECT_EQ(second.messages.back().usage().cached_prompt_tokens(), 96);
  EXPECT_EQ(second.tokens(), first.tokens());
  EXPECT_THAT(Scrape(daemon_->metrics_address()),
              HasSubstr("nibble_prefix_cached_tokens_total{model=\"tiny\"} 96"));
}

TEST_F(ServingTest, ASeedDecidesTheTokensAndStreamsGetTheirOwn) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(Request(std::string(static_cast<size_t>(i * 7 + 1), 'p'), 30));
    requests.back().mutable_sampling()->set_temperature(1.5f);
    requests.back().mutable_sampling()->set_seed(static_cast<uint64_t>(i));
    if (i == 5) requests.back().set_n(2);
  }
  std::vector<Answer> alone;
  for (const auto& request : requests) alone.push_back(Generate(request));
  EXPECT_NE(alone[5].tokens(0), alone[5].tokens(1));
  EXPECT_EQ(alone[5].messages.back().usage().completion_tokens(), 60);

  std::vector<Answer> together(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = Generate(requests[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(together[i].status.ok());
    EXPECT_EQ(together[i].messages.front().start().seed(), i);
    EXPECT_EQ(together[i].messages.back().usage().prompt_tokens(), i * 7 + 1);
    for (int choice = 0; choice < (i == 5 ? 2 : 1); ++choice) {
      EXPECT_EQ(together[i].tokens(choice), alone[i].tokens(choice)) << "request " << i;
    }
  }
}

TEST_F(ServingTest, AStopStringEndsTheTextBeforeIt) {
  const Answer whole = Generate(Request("stop here", 60));
  const std::string text = whole.text();
  ASSERT_GT(text.size(), 20u);
  v1::GenerateRequest request = Request("stop here", 60);
  // Three whole characters.
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xc0) != 0x80) starts.push_back(i);
  }
  const size_t middle = starts.size() / 2;
  const std::string stop = text.substr(starts[middle], starts[middle + 3] - starts[middle]);
  request.add_stop(stop);
  const Answer stopped = Generate(request);
  ASSERT_TRUE(stopped.status.ok());
  EXPECT_EQ(stopped.text(), text.substr(0, text.find(stop)));
  EXPECT_EQ(stopped.finish(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped.messages.back().matched_stop(), stop);
  EXPECT_LT(stopped.tokens().size(), 60u);
}

TEST_F(ServingTest, AStopTokenEndsTheChoiceUnsent) {
  const std::vector<int32_t> tokens = Generate(Request("token", 30)).tokens();
  v1::GenerateRequest request = Request("token", 30);
  request.add_stop_token_ids(tokens[12]);
  const Answer stopped = Generate(request);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[12]);
  EXPECT_EQ(stopped.tokens(), std::vector<int32_t>(tokens.begin(), first));
  EXPECT_EQ(stopped.messages.back().matched_stop_token_id(), tokens[12]);
}

TEST_F(ServingTest, LogprobsAreThoseOfTheGreedyChoice) {
  v1::GenerateRequest request = Request("logprobs", 5);
  request.set_logprobs(2);
  request.set_prompt_logprobs(0);
  const Answer answer = Generate(request);
  int prompt = 0;
  int generated = 0;
  for (const auto& message : answer.messages) {
    prompt += message.prompt_logprobs_size();
    for (int i = 0; i < message.logprobs_size(); ++i, ++generated) {
      const v1::TokenLogprob& logprob = message.logprobs(i);
      EXPECT_EQ(logprob.token_id(), message.token_ids(i));
      ASSERT_EQ(logprob.top_size(), 2);
      EXPECT_EQ(logprob.top(0).token_id(), logprob.token_id());
      EXPECT_GE(logprob.top(0).logprob(), logprob.top(1).logprob());
      EXPECT_LE(logprob.logprob(), 0);
    }
  }
  EXPECT_EQ(prompt, 7);
  EXPECT_EQ(generated, 5);
}

TEST_F(ServingTest, BadRequestsAreRefusedByField) {
  ExpectRefused(Request(std::string(kContext + 1, 'x'), 0), grpc::StatusCode::INVALID_ARGUMENT,
                "prompt: found 2049 tokens, expected at most 2048, the model's context");
  ExpectRefused(Request("abc", kContext), grpc::StatusCode::INVALID_ARGUMENT,
                "found 3 tokens with max_tokens 2048, expected at most 2048");
  ExpectRefused(Request("", 3), grpc::StatusCode::INVALID_ARGUMENT,
                "prompt: found 0 tokens, expected 1 or more");
  v1::GenerateRequest request = Request("a", 3);
  request.mutable_sampling()->set_temperature(NAN);
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT,
                "sampling.temperature: found nan, expected 0 to 100");
  request = Request("a", 3);
  request.set_model("nobody");
  ExpectRefused(request, grpc::StatusCode::NOT_FOUND, "model: found \"nobody\"");
  request.set_model("../tiny");
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT, "model: found \"../tiny\"");
  request = Request("a", 3);
  request.mutable_chat()->add_messages()->set_role("user");
  ExpectRefused(request, grpc::StatusCode::FAILED_PRECONDITION, "chat");
  request = Request("a", 3);
  request.mutable_token_ids()->add_ids(256);
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT, "found token id 256");
}

TEST_F(ServingTest, ValuesOutsideTheApiAreRefusedAndTheRestIsNamed) {
  v1::GenerateRequest generate = Request("a", 3);
  generate.add_stop_token_ids(256);
  ExpectRefused(generate, grpc::StatusCode::INVALID_ARGUMENT, "stop_token_ids: found 256");
  EXPECT_NE(Generate(Request("a", 1)).messages.front().start().request_id(), "");
  v1::ListModelsResponse list;
  const auto refuse = [&](const v1::ListModelsRequest& request, const std::string& words) {
    grpc::ClientContext context;
    const grpc::Status status = models_->ListModels(&context, request, &list);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(words));
  };
  v1::ListModelsRequest models;
  models.set_kind(static_cast<v1::ModelKind>(9));
  refuse(models, "kind: found 9");
  models.Clear();
  models.add_states(static_cast<v1::ModelState>(9));
  refuse(models, "states: found 9");
  models.Clear();
  models.mutable_page()->set_token("junk");
  refuse(models, "page.token");
  models.mutable_page()->set_token("");
  models.mutable_page()->set_size(-1);
  refuse(models, "page.size: found -1");
  grpc::ClientContext context;
  v1::LoadModelRequest load;
  load.set_name("tiny");
  load.mutable_options()->set_compute(static_cast<v1::Compute>(9));
  v1::Model model;
  EXPECT_EQ(models_->LoadModel(&context, load, &model).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServingTest, AScoreIsTheEvaluationOfItsText) {
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

TEST_F(ServingTest, TextBecomesTokensAndTextAgainWithoutLoading) {
  v1::TokenizeRequest request;
  request.set_model("tiny");
  request.set_text("h\xc3\xa9llo");
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(inference_->Tokenize(&context, request, &tokens).ok());
  }
  ASSERT_EQ(tokens.token_ids_size(), 6);
  EXPECT_EQ(tokens.tokens(1), "\xc3");  // half a character
  v1::DetokenizeRequest back;
  back.set_model("tiny");
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(inference_->Detokenize(&context, back, &text).ok());
  }
  EXPECT_EQ(text.text(), request.text());
  back.add_token_ids(256);
  grpc::ClientContext context;
  const grpc::Status status = inference_->Detokenize(&context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("token_ids: found 256"));
  grpc::ClientContext get_context;
  v1::GetModelRequest get;
  get.set_name("tiny");
  v1::Model model;
  ASSERT_TRUE(models_->GetModel(&get_context, get, &model).ok());
  EXPECT_EQ(model.versions(0).state(), v1::MODEL_STATE_STORED);
}

TEST_F(ServingTest, ARequestLongerThanTheCacheIsRefusedAndAnUnlimitedOneFitsIt) {
  // Four layers of keys and values, two heads of 16, in f32: 1 KiB a token, so 64 blocks of 16.
  ASSERT_TRUE(WriteTinyLlama({.context = kContext}, folder_.path() / "models" / "wide").ok());
  daemon_.reset();
  daemon_ = std::make_unique<DaemonProcess>(
      NIBBLED_PATH, folder_.path(),
      std::vector<std::string>{"--kv-bytes", "1048576", "--serve-threads", "1"});
  inference_ = v1::InferenceService::NewStub(
      grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request = Request("some text", 1016);
  request.set_model("wide");
  ExpectRefused(request, grpc::StatusCode::RESOURCE_EXHAUSTED,
                "KV cache: found 64 blocks, expected at least 65");
  request.clear_max_tokens();
  EXPECT_EQ(Generate(request).tokens().size(), 1024u - 9);
}

TEST_F(ServingTest, ACancelledStreamFreesItsBlocks) {
  grpc::ClientContext context;
  const auto reader = inference_->Generate(&context, Request("cancel", 2000));
  v1::GenerateResponse message;
  while (message.token_ids().empty()) ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  AwaitMetric("nibble_kv_blocks_used{model=\"tiny\"} 0\n");
}

TEST_F(ServingTest, ASlowReaderHoldsUpNobodyAndGetsEverything) {
  v1::GenerateRequest slow = Request("slow", 2000);
  slow.set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = inference_->Generate(&context, slow);
  const Answer other = Generate(Request("quick", 50));
  EXPECT_EQ(other.tokens().size(), 50u);
  Answer late;
  for (v1::GenerateResponse message; reader->Read(&message);) late.messages.push_back(message);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(late.tokens().size(), 2000u);
}

TEST_F(ServingTest, PassedDeadlinesEndTheStreamAndFreeItsBlocks) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const auto reader = inference_->Generate(&context, Request("late", 2000));
  for (v1::GenerateResponse message; reader->Read(&message);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // The model may have been loaded after the deadline, or not at all.
  EXPECT_EQ(Generate(Request("next", 5)).tokens().size(), 5u);
  AwaitMetric("nibble_kv_blocks_used{model=\"tiny\"} 0\n");
}

TEST_F(ServingTest, AnEvaluationShowsProgressAndGivesTheSameTwice) {
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

TEST_F(ServingTest, AnEvaluationIsTheMeanOfScoredPrompts) {
  std::vector<v1::EvaluatePerplexityResponse> messages;
  v1::EvaluatePerplexityRequest request = Evaluation("text.txt", 700);
  request.set_windows(2);
  ASSERT_TRUE(Evaluate(request, messages).ok());
  std::ifstream file(folder_.path() / "corpora" / "text.txt");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  double sum = 0;
  for (int window = 0; window < 2; ++window) {
    v1::GenerateRequest score = Request(text.substr(static_cast<size_t>(window) * 700, 700), 0);
    score.set_prompt_logprobs(0);
    for (const auto& message : Generate(score).messages) {
      for (const auto& logprob : message.prompt_logprobs()) sum -= logprob.logprob();
    }
  }
  // Logprobs cross the wire as f32: half a unit of 2^-24 on each of about 6.
  EXPECT_NEAR(messages.back().negative_log_likelihood(), sum / (2 * 699), 1e-6);
}

TEST_F(ServingTest, ACancelledEvaluationFreesItsModel) {
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

TEST_F(ServingTest, BadEvaluationsAreRefusedByField) {
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

TEST_F(ServingTest, AProfileComesLayerByLayerAndItsPlacementsAreTheRequests) {
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

TEST_F(ServingTest, ACancelledProfileLetsTheNextOneRun) {
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

TEST_F(ServingTest, BadProfilesAreRefusedByField) {
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

TEST_F(ServingTest, AModelIsLoadedListedUnloadedAndDeleted) {
  const auto state = [&] {
    grpc::ClientContext context;
    v1::ListModelsResponse list;
    EXPECT_TRUE(models_->ListModels(&context, {}, &list).ok());
    return list.models_size() == 1 ? list.models(0).versions(0).state()
                                   : v1::MODEL_STATE_UNSPECIFIED;
  };
  EXPECT_EQ(state(), v1::MODEL_STATE_STORED);
  v1::LoadModelRequest load;
  load.set_name("tiny");
  v1::Model model;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(models_->LoadModel(&context, load, &model).ok());
  }
  EXPECT_EQ(model.versions(0).state(), v1::MODEL_STATE_LOADED);
  EXPECT_GT(model.versions(0).memory_bytes(), 0);
  EXPECT_EQ(state(), v1::MODEL_STATE_LOADED);
  v1::DeleteModelRequest remove;
  remove.set_name("tiny");
  v1::DeleteModelResponse removed;
  {
    grpc::ClientContext context;
    EXPECT_EQ(models_->DeleteModel(&context, remove, &removed).error_code(),
              grpc::StatusCode::FAILED_PRECONDITION);
  }
  v1::UnloadModelRequest unload;
  unload.set_name("tiny");
  {
    grpc::ClientContext context;
    ASSERT_TRUE(models_->UnloadModel(&context, unload, &model).ok());
  }
  EXPECT_EQ(model.versions(0).state(), v1::MODEL_STATE_STORED);
  {
    grpc::ClientContext context;
    EXPECT_TRUE(models_->DeleteModel(&context, remove, &removed).ok());
  }
  EXPECT_EQ(state(), v1::MODEL_STATE_UNSPECIFIED);
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "models" / "tiny"));
}

}  // namespace
}  // namespace nibble
