// What clients of a served tiny model ask, and how they read its answers.
#pragma once

#include <grpcpp/support/sync_stream.h>

#include <string>
#include <vector>

#include "nibble/v1/inference.pb.h"

namespace nibble {

// Of model "tiny", `max_tokens` tokens whatever they are.
inline v1::GenerateRequest TinyRequest(const std::string& text, int max_tokens) {
  v1::GenerateRequest request;
  request.set_model("tiny");
  request.set_text(text);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

// Appends every message of a stream and returns how it ended.
template <class Message>
grpc::Status ReadAll(grpc::ClientReaderInterface<Message>& reader, std::vector<Message>& messages) {
  for (Message message; reader.Read(&message);) messages.push_back(message);
  return reader.Finish();
}

}  // namespace nibble
