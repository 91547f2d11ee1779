#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

struct Generation {
  v1::GenerateRequest request;
  std::string prompt;
  bool chat = false;
};
using Shared = std::shared_ptr<Generation>;

void SetPrompt(Generation& generation) {
  if (generation.chat) {
    v1::ChatMessage* message = generation.request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(generation.prompt);
  } else {
    generation.request.set_text(generation.prompt);
  }
}

void PrintUsage(const v1::GenerateResponse& last, std::ostream& err) {
  const v1::Usage& usage = last.usage();
  const v1::Timing& timing = last.timing();
  err << usage.prompt_tokens() << " prompt tokens, " << usage.completion_tokens()
      << " generated, first after " << Fixed(timing.time_to_first_token_seconds(), 2) << " s";
  const double decoding = timing.total_seconds() - timing.time_to_first_token_seconds();
  if (usage.completion_tokens() > 1 && decoding > 0) {
    err << ", then " << Fixed(static_cast<double>(usage.completion_tokens() - 1) / decoding, 1)
        << " tokens/s";
  }
  err << ", finish " << ShortName(v1::FinishReason_Name(last.finish_reason()), "FINISH_REASON_")
      << std::endl;
}

absl::Status Generate(Client& client, const Context& context, Generation& generation) {
  SetPrompt(generation);
  std::ostream& out = context.terminal.out;
  absl::Status printed;
  bool shown = false;
  v1::GenerateResponse last;
  const absl::Status status =
      client.Generate(generation.request, [&](const v1::GenerateResponse& response) {
        if (context.json) {
          printed = PrintJson(response, out);
        } else {
          out << response.text() << std::flush;
          shown = true;
        }
        if (response.has_usage()) last = response;
        return printed.ok();
      });
  if (!context.json && shown) out << std::endl;
  NIBBLE_RETURN_IF_ERROR(status);
  if (!context.json) PrintUsage(last, context.terminal.err);
  return absl::OkStatus();
}

void AddSampling(CLI::App& command, const Shared& generation) {
  const auto sampling = [generation]() -> v1::Sampling& {
    return *generation->request.mutable_sampling();
  };
  command.add_option_function<float>(
      "--temperature", [sampling](float value) { sampling().set_temperature(value); },
      "0 is greedy");
  command.add_option_function<int32_t>(
      "--top-k", [sampling](int32_t value) { sampling().set_top_k(value); },
      "Only the so many likeliest tokens; 0 is all");
  command.add_option_function<float>(
      "--top-p", [sampling](float value) { sampling().set_top_p(value); },
      "Only the likeliest tokens that together have this probability");
  command.add_option_function<uint64_t>(
      "--seed", [sampling](uint64_t value) { sampling().set_seed(value); },
      "Makes sampling repeatable");
}

}  // namespace

void AddGenerate(CLI::App& app, Context& context) {
  CLI::App* command = AddCommand(
      app, "generate", "Continues a prompt: text on stdout as it comes, figures on stderr",
      "  nibble generate --model smollm2 --prompt 'Once upon a time' --max-tokens 64\n"
      "  nibble generate --model smollm2 --chat --prompt 'What is a nibble?' --temperature 0");
  auto generation = std::make_shared<Generation>();
  v1::GenerateRequest& request = generation->request;
  command
      ->add_option_function<std::string>(
          "--model", [&request](const std::string& name) { request.set_model(name); },
          "Which model; it is loaded if it is not, and stays loaded")
      ->required();
  command->add_option("--prompt", generation->prompt, "The text to continue")->required();
  command->add_flag("--chat", generation->chat,
                    "The prompt is a user's message, in the model's chat template");
  command->add_option_function<int32_t>(
      "--max-tokens", [&request](int32_t value) { request.set_max_tokens(value); },
      "Most tokens to generate");
  command
      ->add_option_function<std::vector<std::string>>(
          "--stop",
          [&request](const std::vector<std::string>& stops) {
            request.mutable_stop()->Assign(stops.begin(), stops.end());
          },
          "Text that ends the answer; may be repeated")
      ->allow_extra_args(false);
  AddSampling(*command, generation);
  command->callback([&context, generation] {
    context.action = [&context, generation](Client& client) {
      return Generate(client, context, *generation);
    };
  });
}

}  // namespace nibble
