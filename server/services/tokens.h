// Tokenize and Detokenize: the tokenizer of a model, loaded or not.
#pragma once

#include "absl/status/status.h"
#include "nibble/v1/inference.pb.h"
#include "server/registry/registry.h"

namespace nibble {

absl::Status Tokenize(const Registry& registry, const v1::TokenizeRequest& request,
                      v1::TokenizeResponse& response);
absl::Status Detokenize(const Registry& registry, const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse& response);

}  // namespace nibble
