// Against transformers' apply_chat_template: tests/fixtures/make_tokenizer_fixtures.py.
#include <gmock/gmock.h>

#include <fstream>

#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class ChatTemplateTest : public testing::Test {
 protected:
  void Write(const char* name, std::string_view text) {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
  }
  absl::StatusOr<ChatTemplate> Load() { return ChatTemplate::Load(folder_.path()); }

  TempFolder folder_;
};

std::vector<ChatMessage> MessagesOf(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& item : list) {
    messages.push_back({item["role"].get<std::string>(), item["content"].get<std::string>()});
  }
  return messages;
}

TEST_F(ChatTemplateTest, RendersAsTransformersDoes) {
  const auto cases =
      ReadJsonFile(std::filesystem::path(NIBBLE_FIXTURES) / "tokenizers" / "chat_cases.json");
  ASSERT_TRUE(cases.ok()) << cases.status();
  ASSERT_EQ(cases->size(), 9u);
  for (const Json& one : *cases) {
    const Json& source = one["template"];
    const Json with_object = {{"bos_token", {{"content", one["bos_token"]}}},
                              {"chat_template",
                               {{{"name", "tool_use"}, {"template", "other"}},
                                {{"name", "default"}, {"template", source}}}}};
    for (const Json& config :
         {Json{{"bos_token", one["bos_token"]}, {"chat_template", source}}, with_object}) {
      Write("tokenizer_config.json", config.dump());
      const auto chat = Load();
      ASSERT_TRUE(chat.ok()) << chat.status();
      const auto text = chat->Render(MessagesOf(one["messages"]));
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, one["text"].get<std::string>()) << source;
    }
  }
}

TEST_F(ChatTemplateTest, TheJinjaFileComesFirst) {
  Write("tokenizer_config.json", R"({"chat_template":"<|start_header_id|><|eot_id|>"})");
  // With a real line break in the literal, as SmolLM2 has it.
  Write("chat_template.jinja", "{{ '<|im_start|>system\nBe good<|im_end|>\n' }}");
  const auto chat = Load();
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*chat->Render({ChatMessage{"user", "Hi"}}),
            "<|im_start|>system\nBe good<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST_F(ChatTemplateTest, AMessagesOwnSystemTurnIsNoDefault) {
  Write("chat_template.jinja",
        "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}");
  EXPECT_EQ(*Load()->Render({ChatMessage{"user", "Hi"}}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(ChatTemplateTest, MissingAndUnknownTemplates) {
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
  Write("tokenizer_config.json", "{}");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
  Write("chat_template.jinja", "[INST] {{ messages[0].content }} [/INST]");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Load().status().message()), HasSubstr("[INST]"));
  Write("chat_template.jinja", "<|start_header_id|> Today Date: {{ date }} <|eot_id|>");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kUnimplemented);
  Write("tokenizer_config.json", R"({"chat_template":7})");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChatTemplateTest, RefusesNoMessagesAndUnknownRoles) {
  Write("chat_template.jinja", "<|im_start|><|im_end|>");
  const auto chat = Load();
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->Render({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(chat->Render({ChatMessage{"tool", "x"}}).status().message()),
              HasSubstr("role: found \"tool\", expected system, user or assistant"));
}

}  // namespace
}  // namespace nibble
