// What requests say in text, chat or ids, as tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nibble/v1/inference.pb.h"
#include "server/engine/engine.h"
#include "server/ops/names.h"
#include "server/registry/registry.h"

namespace nibble {

absl::StatusOr<std::vector<int32_t>> ChatTokens(const Registry& registry, const std::string& model,
                                                const Tokenizer& tokenizer, const v1::Chat& chat);
absl::StatusOr<std::vector<int32_t>> PromptTokens(const Registry& registry,
                                                  const LoadedModel& model,
                                                  const v1::GenerateRequest& request);
v1::TokenLogprob LogprobMessage(const TokenLogprob& logprob, const Tokenizer& tokenizer);

}  // namespace nibble
