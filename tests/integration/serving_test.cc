// The built nibbled as a server of tokens, driven over gRPC as a client does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/serving_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

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

TEST_F(ServingTest, GreedyTokensAreTheSameTwiceAndTheLastMessageHasTheUsage) {
  const Answer first = Generate(TinyRequest("some text", 40));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.tokens().size(), 40u);
  EXPECT_EQ(Generate(TinyRequest("some text", 40)).tokens(), first.tokens());
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
  const v1::GenerateRequest request = TinyRequest(std::string(100, 'q'), 8);
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
    requests.push_back(TinyRequest(std::string(static_cast<size_t>(i * 7 + 1), 'p'), 30));
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
  const Answer whole = Generate(TinyRequest("stop here", 60));
  const std::string text = whole.text();
  ASSERT_GT(text.size(), 20u);
  v1::GenerateRequest request = TinyRequest("stop here", 60);
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
  const std::vector<int32_t> tokens = Generate(TinyRequest("token", 30)).tokens();
  v1::GenerateRequest request = TinyRequest("token", 30);
  request.add_stop_token_ids(tokens[12]);
  const Answer stopped = Generate(request);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[12]);
  EXPECT_EQ(stopped.tokens(), std::vector<int32_t>(tokens.begin(), first));
  EXPECT_EQ(stopped.messages.back().matched_stop_token_id(), tokens[12]);
}

TEST_F(ServingTest, LogprobsAreThoseOfTheGreedyChoice) {
  v1::GenerateRequest request = TinyRequest("logprobs", 5);
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
  ExpectRefused(TinyRequest(std::string(kContext + 1, 'x'), 0), grpc::StatusCode::INVALID_ARGUMENT,
                "prompt: found 2049 tokens, expected at most 2048, the model's context");
  ExpectRefused(TinyRequest("abc", kContext), grpc::StatusCode::INVALID_ARGUMENT,
                "found 3 tokens with max_tokens 2048, expected at most 2048");
  ExpectRefused(TinyRequest("", 3), grpc::StatusCode::INVALID_ARGUMENT,
                "prompt: found 0 tokens, expected 1 or more");
  v1::GenerateRequest request = TinyRequest("a", 3);
  request.mutable_sampling()->set_temperature(NAN);
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT,
                "sampling.temperature: found nan, expected 0 to 100");
  request = TinyRequest("a", 3);
  request.set_model("nobody");
  ExpectRefused(request, grpc::StatusCode::NOT_FOUND, "model: found \"nobody\"");
  request.set_model("../tiny");
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT, "model: found \"../tiny\"");
  request = TinyRequest("a", 3);
  request.mutable_chat()->add_messages()->set_role("user");
  ExpectRefused(request, grpc::StatusCode::FAILED_PRECONDITION, "chat");
  request = TinyRequest("a", 3);
  request.mutable_token_ids()->add_ids(256);
  ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT, "found token id 256");
}

TEST_F(ServingTest, ValuesOutsideTheApiAreRefusedAndTheRestIsNamed) {
  v1::GenerateRequest generate = TinyRequest("a", 3);
  generate.add_stop_token_ids(256);
  ExpectRefused(generate, grpc::StatusCode::INVALID_ARGUMENT, "stop_token_ids: found 256");
  EXPECT_NE(Generate(TinyRequest("a", 1)).messages.front().start().request_id(), "");
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
  v1::GenerateRequest request = TinyRequest("some text", 1016);
  request.set_model("wide");
  ExpectRefused(request, grpc::StatusCode::RESOURCE_EXHAUSTED,
                "KV cache: found 64 blocks, expected at least 65");
  request.clear_max_tokens();
  EXPECT_EQ(Generate(request).tokens().size(), 1024u - 9);
}

TEST_F(ServingTest, ACancelledStreamFreesItsBlocks) {
  grpc::ClientContext context;
  const auto reader = inference_->Generate(&context, TinyRequest("cancel", 2000));
  v1::GenerateResponse message;
  while (message.token_ids().empty()) ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  AwaitMetric("nibble_kv_blocks_used{model=\"tiny\"} 0\n");
}

TEST_F(ServingTest, ASlowReaderHoldsUpNobodyAndGetsEverything) {
  v1::GenerateRequest slow = TinyRequest("slow", 2000);
  slow.set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = inference_->Generate(&context, slow);
  const Answer other = Generate(TinyRequest("quick", 50));
  EXPECT_EQ(other.tokens().size(), 50u);
  Answer late;
  for (v1::GenerateResponse message; reader->Read(&message);) late.messages.push_back(message);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(late.tokens().size(), 2000u);
}

TEST_F(ServingTest, PassedDeadlinesEndTheStreamAndFreeItsBlocks) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const auto reader = inference_->Generate(&context, TinyRequest("late", 2000));
  for (v1::GenerateResponse message; reader->Read(&message);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // The model may have been loaded after the deadline, or not at all.
  EXPECT_EQ(Generate(TinyRequest("next", 5)).tokens().size(), 5u);
  AwaitMetric("nibble_kv_blocks_used{model=\"tiny\"} 0\n");
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
