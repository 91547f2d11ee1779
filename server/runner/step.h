// What the engine tells a ModelRunner to do in one step, and what comes back: plain structs that
// can cross a process boundary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

// How the next token is chosen. Defaults change nothing.
struct SamplingParams {
  float temperature = 0;         // 0: greedy
  int32_t top_k = 0;             // 0: all
  float top_p = 1;               // 1: all
  float min_p = 0;               // 0: all
  float repetition_penalty = 1;  // 1: none
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;  // with the token's position decides every random draw
};

// New tokens of one sequence. The runner keeps no state of a sequence but its KV blocks.
struct SequenceInput {
  uint64_t sequence = 0;
  std::vector<int32_t> tokens;  // positions position .. position + tokens.size() - 1
  int64_t position = 0;
  std::vector<int32_t> blocks;  // KV blocks of positions 0 .. position + tokens.size() - 1
  bool sample = false;          // choose the token after the last one
  SamplingParams sampling;
  std::vector<int32_t> banned;      // token ids that may not be chosen now (min tokens: the stops)
  std::vector<int32_t> history;     // prompt and output so far, only if a penalty needs it
  int64_t history_prompt = 0;       // how many of `history` are the prompt
  int32_t top_logprobs = -1;        // -1: no logprobs; n: the chosen one's and the n best
  bool score_prompt = false;        // logprob of each of `tokens` given those before it
  int32_t prompt_top_logprobs = 0;  // score_prompt: the n best beside each token
  std::optional<int32_t> score_next;  // score: the token after the last of this chunk, if known
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

struct SequenceOutput {
  uint64_t sequence = 0;
  std::optional<int32_t> token;         // if `sample`
  std::optional<TokenLogprob> logprob;  // if top_logprobs >= 0
  // If `score_prompt`: for tokens[1..] and score_next, given all before.
  std::vector<TokenLogprob> prompt_logprobs;
};

struct StepInputs {
  std::vector<SequenceInput> sequences;
};

struct StepOutputs {
  std::vector<SequenceOutput> sequences;  // in the order of the inputs
};

}  // namespace nibble
