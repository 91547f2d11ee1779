#include "server/runner/step_codec.h"

#include <concepts>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "quant/base/strings.h"

namespace nibble {
namespace {

template <class T, class Struct>
concept Some = std::same_as<std::remove_const_t<T>, Struct>;

// The one place that knows the fields and their order: `codec` measures, writes or reads them.

template <class Codec>
void Visit(Codec& codec, Some<SamplingParams> auto& params) {
  codec.Fields(params.temperature, params.top_k, params.top_p, params.min_p,
               params.repetition_penalty, params.presence_penalty, params.frequency_penalty,
               params.logit_bias, params.seed);
}

template <class Codec>
void Visit(Codec& codec, Some<SequenceInput> auto& input) {
  codec.Fields(input.sequence, input.tokens, input.position, input.blocks, input.sample,
               input.sampling, input.banned, input.history, input.history_prompt,
               input.top_logprobs, input.score_prompt, input.prompt_top_logprobs, input.score_next);
}

template <class Codec>
void Visit(Codec& codec, Some<TokenLogprob> auto& logprob) {
  codec.Fields(logprob.token, logprob.logprob, logprob.top);
}

template <class Codec>
void Visit(Codec& codec, Some<SequenceOutput> auto& output) {
  codec.Fields(output.sequence, output.token, output.logprob, output.prompt_logprobs);
}

template <class Codec>
void Visit(Codec& codec, Some<StepInputs> auto& inputs) {
  codec.Fields(inputs.sequences);
}

template <class Codec>
void Visit(Codec& codec, Some<StepOutputs> auto& outputs) {
  codec.Fields(outputs.sequences);
}

template <class Codec>
void Visit(Codec& codec, Some<RunnerFacts> auto& facts) {
  codec.Fields(facts.pool.blocks, facts.pool.block_size, facts.pool.bytes, facts.context,
               facts.vocab_size, facts.weight_bytes);
}

template <class T>
concept Scalar = std::is_arithmetic_v<T>;

// Sends fields to Out::Put(const void* from, size_t size).
template <class Out>
class Encoder {
 public:
  explicit Encoder(Out out) : out_(out) {}
  const Out& out() const { return out_; }

  template <class... Ts>
  void Fields(const Ts&... values) {
    (Field(values), ...);
  }

 private:
  template <Scalar T>
  void Field(const T& value) {
    out_.Put(&value, sizeof(value));
  }
  template <class T>
  void Field(const std::optional<T>& value) {
    Field(value.has_value());
    if (value) Field(*value);
  }
  template <class A, class B>
  void Field(const std::pair<A, B>& value) {
    Fields(value.first, value.second);
  }
  template <class T>
  void Field(const std::vector<T>& values) {
    Field(static_cast<uint32_t>(values.size()));
    if constexpr (Scalar<T>) {
      out_.Put(values.data(), values.size() * sizeof(T));
    } else {
      for (const T& value : values) Field(value);
    }
  }
  template <class T>
  void Field(const T& value) {
    Visit(*this, value);
  }

  Out out_;
};

struct Measure {
  size_t bytes = 0;
  void Put(const void*, size_t size) { bytes += size; }
};

struct Write {
  char* to;
  void Put(const void* from, size_t size) {
    if (size > 0) std::memcpy(to, from, size);
    to += size;
  }
};

template <class T>
void EncodeWhole(const T& value, std::string& bytes) {
  Encoder measure(Measure{});
  measure.Fields(value);
  bytes.resize(measure.out().bytes);
  Encoder(Write{bytes.data()}).Fields(value);
}

// After the first error nothing more is read.
class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : left_(bytes) {}

  template <class... Ts>
  void Fields(Ts&... values) {
    (Field(values), ...);
  }

  // To be asked once all is read.
  absl::Status End() {
    if (!left_.empty()) Fail("end of message", left_.size(), "0 bytes left");
    return status_;
  }

 private:
  void Fail(std::string_view what, size_t found, std::string_view expected) {
    if (!status_.ok()) return;
    status_ = absl::InternalError(StrCat(what, ": found ", found, ", expected ", expected));
    left_ = {};
  }

  // False when so much is not left.
  bool Take(void* to, size_t size) {
    if (size > left_.size()) {
      Fail("message", left_.size(), StrCat(size, " bytes or more to be left"));
      return false;
    }
    if (size > 0) std::memcpy(to, left_.data(), size);
    left_.remove_prefix(size);
    return true;
  }

  template <Scalar T>
  void Field(T& value) {
    Take(&value, sizeof(value));
  }
  void Field(bool& value) {
    uint8_t byte = 0;
    Field(byte);
    if (byte > 1) Fail("flag", byte, "0 or 1");
    value = byte == 1;
  }
  template <class T>
  void Field(std::optional<T>& value) {
    bool has_value = false;
    Field(has_value);
    value.reset();
    if (has_value) Field(value.emplace());
  }
  template <class A, class B>
  void Field(std::pair<A, B>& value) {
    Fields(value.first, value.second);
  }
  template <Scalar T>
  void Field(std::vector<T>& values) {
    uint32_t count = 0;
    Field(count);
    const size_t size = count * sizeof(T);
    if (size > left_.size()) return Fail("vector", size, StrCat(left_.size(), " bytes at most"));
    values.resize(count);
    Take(values.data(), size);
  }
  // Grows with what is read: a wrong count takes no memory.
  template <class T>
  void Field(std::vector<T>& values) {
    uint32_t count = 0;
    Field(count);
    if (values.size() > count) values.resize(count);
    for (uint32_t i = 0; i < count && status_.ok(); ++i) {
      if (i == values.size()) values.emplace_back();
      Field(values[i]);
    }
  }
  template <class T>
  void Field(T& value) {
    Visit(*this, value);
  }

  std::string_view left_;
  absl::Status status_;
};

template <class T>
absl::Status DecodeWhole(std::string_view bytes, T& value) {
  Decoder decoder(bytes);
  decoder.Fields(value);
  return decoder.End();
}

// A status as plain fields.
struct PlainStatus {
  int32_t code = 0;
  std::vector<char> message;
};

template <class Codec>
void Visit(Codec& codec, Some<PlainStatus> auto& status) {
  codec.Fields(status.code, status.message);
}

}  // namespace

void Encode(const StepInputs& inputs, std::string& bytes) { EncodeWhole(inputs, bytes); }
void Encode(const StepOutputs& outputs, std::string& bytes) { EncodeWhole(outputs, bytes); }
void Encode(const RunnerFacts& facts, std::string& bytes) { EncodeWhole(facts, bytes); }
void Encode(const absl::Status& status, std::string& bytes) {
  EncodeWhole(PlainStatus{.code = static_cast<int32_t>(status.code()),
                          .message = {status.message().begin(), status.message().end()}},
              bytes);
}

absl::Status Decode(std::string_view bytes, StepInputs& inputs) {
  return DecodeWhole(bytes, inputs);
}
absl::Status Decode(std::string_view bytes, StepOutputs& outputs) {
  return DecodeWhole(bytes, outputs);
}
absl::Status Decode(std::string_view bytes, RunnerFacts& facts) {
  return DecodeWhole(bytes, facts);
}

absl::Status DecodeStatus(std::string_view bytes) {
  PlainStatus plain;
  if (absl::Status decoded = DecodeWhole(bytes, plain); !decoded.ok()) return decoded;
  const auto code = static_cast<absl::StatusCode>(plain.code);
  if (code < absl::StatusCode::kCancelled || code > absl::StatusCode::kUnauthenticated) {
    return absl::InternalError(StrCat("status code: found ", plain.code, ", expected 1 to ",
                                      static_cast<int>(absl::StatusCode::kUnauthenticated)));
  }
  return {code, absl::string_view(plain.message.data(), plain.message.size())};
}

}  // namespace nibble
