// What the command families share. Each Add...() adds its subcommands, whose callbacks set
// Context::action; it runs once the whole line is parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/cli/cli.h"
#include "client/cpp/client.h"

namespace nibble {

struct Context {
  Terminal terminal;
  // host:port.
  std::string server = "127.0.0.1:8500";
  // One JSON object a line, with the proto's field names.
  bool json = false;
  std::function<absl::Status(Client&)> action;
};

void AddJobs(CLI::App& app, Context& context);
void AddSubmit(CLI::App& jobs, Context& context);
void AddEstimate(CLI::App& jobs, Context& context);
void AddModels(CLI::App& app, Context& context);
void AddCorpora(CLI::App& app, Context& context);
void AddGenerate(CLI::App& app, Context& context);
void AddEvaluate(CLI::App& app, Context& context);
void AddProfile(CLI::App& evaluate, Context& context);
void AddImport(CLI::App& app, Context& context);
// A command that is the Python program of its name.
void AddTool(CLI::App& parent, Context& context, const std::string& name,
             const std::string& description);

// A subcommand with its --help text; `examples` is one command a line.
CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& description,
                     const std::string& examples);

// Options that several commands have. `corpus` makes the field that the range goes into.
void AddCorpusRange(CLI::App& command, std::function<v1::CorpusRef&()> corpus);
void AddCompute(CLI::App& command, std::function<void(v1::Compute)> set);

}  // namespace nibble
