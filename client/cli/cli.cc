#include "client/cli/cli.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "client/cli/commands.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"

namespace nibble {
namespace {

void AddGlobals(CLI::App& app, Context& context) {
  app.description("Quantizes language models by remote jobs, evaluates them, streams their text.");
  app.footer(
      "examples:\n"
      "  nibble models list\n"
      "  nibble --server gpu7:8500 jobs list --json\n"
      "  nibble generate --model smollm2 --chat --prompt 'What is a nibble?'");
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version", NIBBLE_VERSION);
  app.add_option("--server", context.server, "host:port of nibbled")->capture_default_str();
  app.add_flag("--json", context.json, "One JSON object a line, with the proto's field names");
}

// A whole positive number; CLI::ValidationError says what was found.
int64_t ParseEntry(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) {
    throw CLI::ValidationError("--corpus-range",
                               StrCat("found '", text, "', expected A:B, whole numbers from 1"));
  }
  return value;
}

// Messages carry UTF-8 only, and gRPC's own refusal would not say where it is not.
absl::Status CheckUtf8(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (IsValidUtf8(argument)) continue;
    return absl::InvalidArgumentError(
        StrCat("an argument: found \"", ReplaceInvalidUtf8(argument), "\", expected valid UTF-8"));
  }
  return absl::OkStatus();
}

// Set when the last command given has commands of its own and none of them follows.
std::optional<absl::Status> MissingCommand(const CLI::App& app) {
  const CLI::App* last = &app;
  std::string line;
  while (!last->get_subcommands().empty()) {
    last = last->get_subcommands().front();
    line += StrCat(" ", last->get_name());
  }
  if (last->get_require_subcommand_min() == 0) return std::nullopt;
  std::string names;
  for (const CLI::App* command : last->get_subcommands([](const CLI::App*) { return true; })) {
    names += StrCat(names.empty() ? "" : ", ", command->get_name());
  }
  const std::vector<std::string> found = app.remaining(/*recurse=*/true);
  return absl::InvalidArgumentError(
      StrCat("the command after `nibble", line, "`: found ",
             found.empty() ? "none" : StrCat("\"", found.front(), "\""), ", expected one of ",
             names, "; see `nibble", line, " --help`"));
}

int Fail(const Context& context, const absl::Status& status) {
  context.terminal.err << "nibble: " << std::string(status.message());
  if (absl::IsUnavailable(status)) {
    context.terminal.err << " (server " << context.server << ")";
  } else if (status.code() != absl::StatusCode::kUnknown) {
    context.terminal.err << " (" << absl::StatusCodeToString(status.code()) << ")";
  }
  context.terminal.err << std::endl;
  return 1;
}

}  // namespace

CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& description,
                     const std::string& examples) {
  CLI::App* command = parent.add_subcommand(name, description);
  command->footer(StrCat("examples:\n", examples));
  return command;
}

void AddCorpusRange(CLI::App& command, std::function<v1::CorpusRef&()> corpus) {
  command.add_option_function<std::string>(
      "--corpus-range",
      [corpus = std::move(corpus)](const std::string& range) {
        const size_t colon = range.find(':');
        if (colon == std::string::npos) ParseEntry(range + ":");
        corpus().set_first_text(ParseEntry(range.substr(0, colon)));
        corpus().set_last_text(ParseEntry(range.substr(colon + 1)));
      },
      "A:B, only texts A to B of a .jsonl (1-based, inclusive)");
}

void AddCompute(CLI::App& command, std::function<void(v1::Compute)> set) {
  command
      .add_option_function<std::string>(
          "--compute",
          [set = std::move(set)](const std::string& name) {
            set(name == "f32" ? v1::COMPUTE_F32 : v1::COMPUTE_BF16);
          },
          "Arithmetic of what is not quantized; default bf16")
      ->check(CLI::IsMember({"f32", "bf16"}));
}

int RunCli(const std::vector<std::string>& arguments, Terminal terminal) {
  Context context{.terminal = terminal, .action = nullptr};
  CLI::App app("", "nibble");
  AddGlobals(app, context);
  AddJobs(app, context);
  AddModels(app, context);
  AddCorpora(app, context);
  AddGenerate(app, context);
  AddEvaluate(app, context);
  AddImport(app, context);
  AddTool(app, context, "report", "Draws a job's or model's report as one HTML file");
  AddTool(app, context, "sweep", "Quantizes a model by many schemes and evaluates each: a table");
  if (const absl::Status status = CheckUtf8(arguments); !status.ok()) return Fail(context, status);
  try {
    // CLI11 takes them last first.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
      if (const auto missing = MissingCommand(app)) return Fail(context, *missing);
    }
    return app.exit(error, terminal.out, terminal.err) == 0 ? 0 : 1;
  }
  Client client({.address = context.server});
  const absl::Status status = context.action(client);
  return status.ok() ? 0 : Fail(context, status);
}

}  // namespace nibble
