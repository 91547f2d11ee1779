#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "quant/base/status_macros.h"

namespace nibble {
namespace {

absl::Status Evaluate(Client& client, const Context& context,
                      const v1::EvaluatePerplexityRequest& request) {
  absl::Status printed;
  v1::EvaluatePerplexityResponse last;
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(
        client.EvaluatePerplexity(request, [&](const v1::EvaluatePerplexityResponse& response) {
          last = response;
          if (context.json) {
            printed = PrintJson(response, context.terminal.out);
          } else if (response.windows_total() > 0) {
            progress.Show(response.windows_done(), response.windows_total(), Describe(response));
          }
          return printed.ok();
        }));
  }
  if (!last.done()) {
    return absl::UnknownError("the evaluation's stream ended without a result, expected one");
  }
  if (!context.json) {
    context.terminal.out << "perplexity " << Fixed(last.perplexity(), 4) << " over "
                         << last.windows_done() << " windows, " << last.tokens() << " tokens, "
                         << Fixed(last.seconds(), 1) << " s" << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvaluate(CLI::App& app, Context& context) {
  CLI::App* evaluate =
      AddCommand(app, "evaluate", "Measures models",
                 "  nibble evaluate perplexity --model smollm2 --corpus evaluation.txt");
  evaluate->require_subcommand(1);
  CLI::App* command = AddCommand(
      *evaluate, "perplexity", "How well a model predicts a text",
      "  nibble evaluate perplexity --model smollm2 --corpus evaluation.txt --window 512\n"
      "  nibble evaluate perplexity --model smollm2 --corpus c4.jsonl --corpus-range 1:100 --json");
  auto request = std::make_shared<v1::EvaluatePerplexityRequest>();
  command
      ->add_option_function<std::string>(
          "--model", [request](const std::string& name) { request->set_model(name); },
          "The model's name")
      ->required();
  command
      ->add_option_function<std::string>(
          "--corpus",
          [request](const std::string& name) { request->mutable_corpus()->set_name(name); },
          "A corpus of the server")
      ->required();
  AddCorpusRange(*command, [request]() -> v1::CorpusRef& { return *request->mutable_corpus(); });
  command->add_option_function<int32_t>(
      "--window", [request](int32_t value) { request->set_window(value); },
      "Tokens of a window; default 2048, or the context where that is less");
  command->add_option_function<int32_t>(
      "--windows", [request](int32_t value) { request->set_windows(value); },
      "Only the first so many windows");
  AddCompute(*command, [request](v1::Compute compute) { request->set_compute(compute); });
  command->callback([&context, request] {
    context.action = [&context, request](Client& client) {
      return Evaluate(client, context, *request);
    };
  });
  AddProfile(*evaluate, context);
}

}  // namespace nibble
