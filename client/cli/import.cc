// `nibble import`: runs the Python tool of client/importer.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/python.h"
#include "client/cli/temporary_folder.h"
#include "client/cpp/transfer.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct Import {
  std::string kind;
  std::string source;
  std::string name;
  std::string data_root;
};

// As the server has it (nibble/v1/common.proto).
absl::Status CheckName(const std::string& name) {
  const bool valid = !name.empty() && name.size() <= 128 && name[0] != '.' && name[0] != '-' &&
                     std::all_of(name.begin(), name.end(), [](unsigned char c) {
                       return std::isalnum(c) || std::strchr("._-", c) != nullptr;
                     });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(
      "NAME: found '", name,
      "', expected 1 to 128 letters, digits, '.', '_' and '-', not starting with '.' or '-'"));
}

absl::Status RunProgram(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  if (const int error = posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ)) {
    return PythonNotStarted(arguments[0], error);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnknownError("the import failed; nothing was written");
}

// Runs the tool, which writes the new folder `out`.
absl::Status Convert(const Import& import, const fs::path& out) {
  SetPythonPath({PythonFolder("importer")});
  return RunProgram(
      {PythonProgram(), "-m", "nibble_import", import.kind, import.source, out.string()});
}

// Into a data root of this machine.
absl::Status ImportHere(const Import& import) {
  const fs::path out = fs::path(import.data_root) / "models" / import.name;
  std::error_code error;
  if (fs::exists(fs::symlink_status(out, error))) {
    return absl::AlreadyExistsError(
        StrCat("NAME: found a model '", import.name, "', expected a new name"));
  }
  return Convert(import, out);
}

// What the push would say only after the conversion.
absl::Status CheckFree(Client& client, const std::string& name) {
  v1::GetModelRequest request;
  request.set_name(name);
  absl::Status status = client.GetModel(request).status();
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (!status.ok()) return status;
  return absl::AlreadyExistsError(
      StrCat("NAME: found a model '", name, "' on the server, expected a new name"));
}

// By way of a temporary folder.
absl::Status ImportToServer(Client& client, const Context& context, const Import& import) {
  NIBBLE_RETURN_IF_ERROR(CheckFree(client, import.name));
  NIBBLE_ASSIGN_OR_RETURN(const auto folder, TemporaryFolder::Make());
  const fs::path out = folder->path() / import.name;
  NIBBLE_RETURN_IF_ERROR(Convert(import, out));
  Progress progress(context.terminal);
  return PushModel(client, out, import.name, [&](const TransferProgress& p) { Show(p, progress); });
}

absl::Status Run(Client& client, const Context& context, const Import& import) {
  NIBBLE_RETURN_IF_ERROR(CheckName(import.name));
  const bool here = !import.data_root.empty();
  NIBBLE_RETURN_IF_ERROR(here ? ImportHere(import) : ImportToServer(client, context, import));
  if (context.json) {
    v1::Model model;
    model.set_name(import.name);
    return PrintJson(model, context.terminal.out);
  }
  context.terminal.out << "imported " << import.name << " into "
                       << (here ? (fs::path(import.data_root) / "models" / import.name).string()
                                : context.server)
                       << std::endl;
  return absl::OkStatus();
}

void AddKind(CLI::App& parent, Context& context, const std::string& kind,
             const std::string& description, const std::string& source) {
  CLI::App* command = AddCommand(
      parent, kind, description,
      StrCat("  nibble import ", kind, " ", source, " smollm2 --data-root /var/lib/nibble\n",
             "  nibble import ", kind, " ", source, " smollm2 --server gpu7:8500"));
  auto import = std::make_shared<Import>();
  import->kind = kind;
  command->add_option("source", import->source, "What to import")->required();
  command->add_option("name", import->name, "The model's name; it must be free")->required();
  command->add_option("--data-root", import->data_root,
                      "A data root of this machine to write to; unset: the server, over its API");
  command->callback([&context, import] {
    context.action = [&context, import](Client& client) { return Run(client, context, *import); };
  });
}

}  // namespace

void AddImport(CLI::App& app, Context& context) {
  CLI::App* import =
      AddCommand(app, "import", "Brings a checkpoint into a data root or to a server",
                 "  nibble import gguf --help");
  import->require_subcommand(1);
  AddKind(*import, context, "gguf", "A GGUF file of the LLaMA architecture", "model.gguf");
  AddKind(*import, context, "hf", "A Hugging Face folder or hub cache", "./SmolLM2-135M");
}

}  // namespace nibble
