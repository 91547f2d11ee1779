#include "server/services/prompt.h"

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

v1::TokenLogprob OneLogprob(int32_t token, float logprob, const Tokenizer& tokenizer) {
  v1::TokenLogprob message;
  message.set_token_id(token);
  message.set_logprob(logprob);
  if (const auto bytes = tokenizer.TokenBytes(token); bytes.ok()) message.set_token(*bytes);
  return message;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> ChatTokens(const Registry& registry, const std::string& model,
                                                const Tokenizer& tokenizer, const v1::Chat& chat) {
  if (chat.messages().empty()) {
    return FieldError(absl::StatusCode::kInvalidArgument, "chat.messages", "none", "1 or more");
  }
  if (chat.has_add_generation_prompt() && !chat.add_generation_prompt()) {
    return FieldError(absl::StatusCode::kUnimplemented, "chat.add_generation_prompt", "false",
                      "true: the assistant's turn is always opened by this version");
  }
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      return FieldError(absl::StatusCode::kInvalidArgument, "chat.messages.role", message.role(),
                        "system, user or assistant");
    }
    messages.push_back({message.role(), message.content()});
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(registry.root(), "model", model));
  const absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Load(folder);
  if (absl::IsNotFound(chat_template.status())) {
    return FieldError(absl::StatusCode::kFailedPrecondition, "chat",
                      StrCat("one for \"", model, "\", which has no chat template"),
                      "a text prompt, or a model with a template");
  }
  NIBBLE_RETURN_IF_ERROR(chat_template.status());
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, chat_template->Render(messages));
  return tokenizer.Encode(text, SpecialTokens::kNone);
}

absl::StatusOr<std::vector<int32_t>> PromptTokens(const Registry& registry,
                                                  const LoadedModel& model,
                                                  const v1::GenerateRequest& request) {
  std::vector<int32_t> tokens;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      NIBBLE_ASSIGN_OR_RETURN(tokens, model.tokenizer->Encode(request.text(), SpecialTokens::kAdd));
      break;
    }
    case v1::GenerateRequest::kTokenIds:
      tokens.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat: {
      NIBBLE_ASSIGN_OR_RETURN(tokens,
                              ChatTokens(registry, model.name, *model.tokenizer, request.chat()));
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  if (tokens.empty()) {
    return FieldError(absl::StatusCode::kInvalidArgument, "prompt", "0 tokens", "1 or more");
  }
  return tokens;
}

v1::TokenLogprob LogprobMessage(const TokenLogprob& logprob, const Tokenizer& tokenizer) {
  v1::TokenLogprob message = OneLogprob(logprob.token, logprob.logprob, tokenizer);
  for (const auto& [token, value] : logprob.top) {
    *message.add_top() = OneLogprob(token, value, tokenizer);
  }
  return message;
}

}  // namespace nibble
