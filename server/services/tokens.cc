#include "server/services/tokens.h"

#include <memory>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/services/prompt.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

absl::StatusOr<std::vector<int32_t>> InputTokens(const Registry& registry,
                                                 const Tokenizer& tokenizer,
                                                 const v1::TokenizeRequest& request) {
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText: {
      const bool add = !request.has_add_special_tokens() || request.add_special_tokens();
      return tokenizer.Encode(request.text(), add ? SpecialTokens::kAdd : SpecialTokens::kNone);
    }
    case v1::TokenizeRequest::kChat:
      return ChatTokens(registry, request.model(), tokenizer, request.chat());
    default:
      return FieldError(absl::StatusCode::kInvalidArgument, "input", "none", "text or chat");
  }
}

}  // namespace

absl::Status Tokenize(const Registry& registry, const v1::TokenizeRequest& request,
                      v1::TokenizeResponse& response) {
  NIBBLE_RETURN_IF_ERROR(CheckVersion(request.version()));
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer,
                          registry.FindTokenizer(request.model()));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          InputTokens(registry, *tokenizer, request));
  for (const int32_t token : tokens) {
    response.add_token_ids(token);
    NIBBLE_ASSIGN_OR_RETURN(*response.add_tokens(), tokenizer->TokenBytes(token));
  }
  response.set_version(1);
  return absl::OkStatus();
}

absl::Status Detokenize(const Registry& registry, const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse& response) {
  NIBBLE_RETURN_IF_ERROR(CheckVersion(request.version()));
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer,
                          registry.FindTokenizer(request.model()));
  for (const int32_t token : request.token_ids()) {
    if (token >= 0 && token < tokenizer->vocab_size()) continue;
    return FieldError(absl::StatusCode::kInvalidArgument, "token_ids", StrCat(token),
                      StrCat("0 to ", tokenizer->vocab_size() - 1));
  }
  const std::vector<int32_t> tokens(request.token_ids().begin(), request.token_ids().end());
  NIBBLE_ASSIGN_OR_RETURN(
      *response.mutable_text(),
      tokenizer->Decode(
          tokens, request.skip_special_tokens() ? DecodeSpecial::kSkip : DecodeSpecial::kKeep));
  response.set_version(1);
  return absl::OkStatus();
}

}  // namespace nibble
