#include "server/runner/step_codec.h"

#include <gtest/gtest.h>

#include <random>

namespace nibble {
namespace {

// Random but valid values. Sizes are small, so that empty ones and short ones are common.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  bool Flag() { return engine_() % 2 == 0; }
  uint64_t Word() { return engine_(); }
  int32_t Int() { return static_cast<int32_t>(engine_()); }
  float Real() { return std::uniform_real_distribution<float>(-10, 10)(engine_); }
  template <class Make>
  auto Vector(Make make) {
    std::vector<decltype(make())> values(engine_() % 5);
    for (auto& value : values) value = make();
    return values;
  }
  std::vector<int32_t> Ids() {
    return Vector([this] { return Int(); });
  }
  std::vector<std::pair<int32_t, float>> Pairs() {
    return Vector([this] { return std::pair(Int(), Real()); });
  }
  SequenceInput Input() {
    SequenceInput input{.sequence = Word(), .tokens = Ids(), .position = Int(), .blocks = Ids()};
    input.sample = Flag();
    input.sampling = {Real(), Int(), Real(), Real(), Real(), Real(), Real(), Pairs(), Word()};
    input.banned = Ids();
    input.history = Ids();
    input.history_prompt = Int();
    input.top_logprobs = Int();
    input.score_prompt = Flag();
    input.prompt_top_logprobs = Int();
    if (Flag()) input.score_next = Int();
    return input;
  }
  TokenLogprob Logprob() { return {Int(), Real(), Pairs()}; }
  SequenceOutput Output() {
    SequenceOutput output{.sequence = Word()};
    if (Flag()) output.token = Int();
    if (Flag()) output.logprob = Logprob();
    output.prompt_logprobs = Vector([this] { return Logprob(); });
    return output;
  }

 private:
  std::mt19937_64 engine_;
};

StepInputs RandomInputs(Random& random) {
  return {random.Vector([&] { return random.Input(); })};
}
StepOutputs RandomOutputs(Random& random) {
  return {random.Vector([&] { return random.Output(); })};
}

void ExpectEqual(const SamplingParams& a, const SamplingParams& b) {
  EXPECT_EQ(a.temperature, b.temperature);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.top_p, b.top_p);
  EXPECT_EQ(a.min_p, b.min_p);
  EXPECT_EQ(a.repetition_penalty, b.repetition_penalty);
  EXPECT_EQ(a.presence_penalty, b.presence_penalty);
  EXPECT_EQ(a.frequency_penalty, b.frequency_penalty);
  EXPECT_EQ(a.logit_bias, b.logit_bias);
  EXPECT_EQ(a.seed, b.seed);
}

void ExpectEqual(const StepInputs& a, const StepInputs& b) {
  ASSERT_EQ(a.sequences.size(), b.sequences.size());
  for (size_t i = 0; i < a.sequences.size(); ++i) {
    const SequenceInput& x = a.sequences[i];
    const SequenceInput& y = b.sequences[i];
    EXPECT_EQ(x.sequence, y.sequence);
    EXPECT_EQ(x.tokens, y.tokens);
    EXPECT_EQ(x.position, y.position);
    EXPECT_EQ(x.blocks, y.blocks);
    EXPECT_EQ(x.sample, y.sample);
    ExpectEqual(x.sampling, y.sampling);
    EXPECT_EQ(x.banned, y.banned);
    EXPECT_EQ(x.history, y.history);
    EXPECT_EQ(x.history_prompt, y.history_prompt);
    EXPECT_EQ(x.top_logprobs, y.top_logprobs);
    EXPECT_EQ(x.score_prompt, y.score_prompt);
    EXPECT_EQ(x.prompt_top_logprobs, y.prompt_top_logprobs);
    EXPECT_EQ(x.score_next, y.score_next);
  }
}

void ExpectEqual(const TokenLogprob& a, const TokenLogprob& b) {
  EXPECT_EQ(a.token, b.token);
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.top, b.top);
}

void ExpectEqual(const StepOutputs& a, const StepOutputs& b) {
  ASSERT_EQ(a.sequences.size(), b.sequences.size());
  for (size_t i = 0; i < a.sequences.size(); ++i) {
    const SequenceOutput& x = a.sequences[i];
    const SequenceOutput& y = b.sequences[i];
    EXPECT_EQ(x.sequence, y.sequence);
    EXPECT_EQ(x.token, y.token);
    ASSERT_EQ(x.logprob.has_value(), y.logprob.has_value());
    if (x.logprob) ExpectEqual(*x.logprob, *y.logprob);
    ASSERT_EQ(x.prompt_logprobs.size(), y.prompt_logprobs.size());
    for (size_t j = 0; j < x.prompt_logprobs.size(); ++j) {
      ExpectEqual(x.prompt_logprobs[j], y.prompt_logprobs[j]);
    }
  }
}

// The decoded one and the string are used again, as a runner does.
TEST(StepCodec, WhatIsDecodedIsWhatWasEncoded) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Random random(seed);
  std::string bytes;
  StepInputs inputs;
  StepOutputs outputs;
  for (int i = 0; i < 1000; ++i) {
    const StepInputs some_inputs = RandomInputs(random);
    Encode(some_inputs, bytes);
    ASSERT_TRUE(Decode(bytes, inputs).ok());
    ExpectEqual(some_inputs, inputs);
    const StepOutputs some_outputs = RandomOutputs(random);
    Encode(some_outputs, bytes);
    ASSERT_TRUE(Decode(bytes, outputs).ok());
    ExpectEqual(some_outputs, outputs);
  }
}

TEST(StepCodec, BytesThatAreCutShortOrGoOnAreAnError) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Random random(seed);
  const auto expect_errors = [](const std::string& bytes, auto decoded) {
    for (size_t size = 0; size < bytes.size(); ++size) {
      // A copy without spare bytes: an address sanitizer sees every read beyond it.
      const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(size));
      EXPECT_EQ(Decode({cut.data(), cut.size()}, decoded).code(), absl::StatusCode::kInternal)
          << size;
    }
    EXPECT_EQ(Decode(bytes + '\0', decoded).message(),
              "end of message: found 1, expected 0 bytes left");
  };
  std::string bytes;
  for (int i = 0; i < 20; ++i) {
    Encode(RandomInputs(random), bytes);
    expect_errors(bytes, StepInputs());
    Encode(RandomOutputs(random), bytes);
    expect_errors(bytes, StepOutputs());
  }
  Encode(RunnerFacts(), bytes);
  expect_errors(bytes, RunnerFacts());
}

TEST(StepCodec, GarbledBytesAreAnErrorOrOtherValues) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Random random(seed);
  std::string bytes;
  for (int i = 0; i < 2000; ++i) {
    StepInputs inputs = RandomInputs(random);
    StepOutputs outputs = RandomOutputs(random);
    Encode(inputs, bytes);
    bytes[random.Word() % bytes.size()] = static_cast<char>(random.Word());
    // Either is right; what it must not do is read elsewhere or take much memory.
    if (Decode(bytes, inputs).ok()) Encode(inputs, bytes);
    Encode(outputs, bytes);
    bytes[random.Word() % bytes.size()] = static_cast<char>(random.Word());
    if (Decode(bytes, outputs).ok()) Encode(outputs, bytes);
  }
}

TEST(StepCodec, WrongFlagsAndCountsAreNamed) {
  std::string bytes;
  Encode(StepOutputs{{SequenceOutput{}}}, bytes);
  StepOutputs outputs;
  std::string wrong = bytes;
  wrong[4 + 8] = 2;  // after the count and the sequence: whether there is a token
  EXPECT_EQ(Decode(wrong, outputs).message(), "flag: found 2, expected 0 or 1");
  wrong = bytes;
  wrong[3] = '\x7f';  // some two billion sequences
  EXPECT_EQ(Decode(wrong, outputs).message(),
            "message: found 0, expected 8 bytes or more to be left");
  EXPECT_LE(outputs.sequences.size(), 2u);
  StepInputs inputs;
  Encode(StepInputs{{SequenceInput{.tokens = {1, 2}}}}, bytes);
  bytes[4 + 8] = 100;
  EXPECT_EQ(Decode(bytes, inputs).message().substr(0, 24), "vector: found 400, expec");
}

TEST(StepCodec, StatusesPassWhole) {
  std::string bytes;
  const absl::Status status = absl::DataLossError("tensor x: found \"7\", expected 8");
  Encode(status, bytes);
  EXPECT_EQ(DecodeStatus(bytes), status);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(DecodeStatus(bytes.substr(0, size)).code(), absl::StatusCode::kInternal);
  }
  Encode(absl::OkStatus(), bytes);
  EXPECT_EQ(DecodeStatus(bytes).message(), "status code: found 0, expected 1 to 16");
}

TEST(StepCodec, FactsPassWhole) {
  const RunnerFacts facts = {.pool = {.blocks = 1, .block_size = 2, .bytes = int64_t{3} << 40},
                             .context = 4,
                             .vocab_size = 5,
                             .weight_bytes = int64_t{6} << 40};
  std::string bytes;
  Encode(facts, bytes);
  RunnerFacts decoded;
  ASSERT_TRUE(Decode(bytes, decoded).ok());
  EXPECT_EQ(decoded.pool.blocks, 1);
  EXPECT_EQ(decoded.pool.block_size, 2);
  EXPECT_EQ(decoded.pool.bytes, int64_t{3} << 40);
  EXPECT_EQ(decoded.context, 4);
  EXPECT_EQ(decoded.vocab_size, 5);
  EXPECT_EQ(decoded.weight_bytes, int64_t{6} << 40);
}

}  // namespace
}  // namespace nibble
