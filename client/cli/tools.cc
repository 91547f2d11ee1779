// Commands that are Python programs of client/tools: this process becomes them, so that their
// options, their --help and a Ctrl-C are theirs.
#include <unistd.h>

#include <cerrno>

#include "client/cli/commands.h"
#include "client/cli/python.h"

namespace nibble {
namespace {

absl::Status BecomeTool(const Context& context, const std::string& tool,
                        const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {PythonProgram(), "-m", "nibble_tools", tool};
  if (tool != "prepare") words.insert(words.end(), {"--server", context.server});
  words.insert(words.end(), arguments.begin(), arguments.end());
  SetPythonPath({PythonFolder("tools"), PythonFolder("python"), PythonFolder("proto")});
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  return PythonNotStarted(words[0], errno);
}

}  // namespace

void AddTool(CLI::App& parent, Context& context, const std::string& name,
             const std::string& description) {
  CLI::App* command = parent.add_subcommand(name, description);
  // What follows is the tool's, --help too.
  command->set_help_flag();
  command->fallthrough(false);
  command->prefix_command();
  command->callback([&context, name, command] {
    context.action = [&context, name, command](Client&) {
      return BecomeTool(context, name, command->remaining());
    };
  });
}

}  // namespace nibble
