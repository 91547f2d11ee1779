#include "server/ops/names.h"

#include <algorithm>
#include <random>
#include <string>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr size_t kLongestName = 128;
constexpr char kRemoved[] = ".removed-";

std::string Quoted(std::string_view text) {
  // Of what a client sent, so much as helps.
  return StrCat("\"", text.substr(0, kLongestName), text.size() > kLongestName ? "..." : "", "\"");
}

bool IsNameByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
}

bool IsFile(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

}  // namespace

absl::Status CreateFolders(const DataRoot& root) {
  for (const auto& folder : {root.models(), root.corpora(), root.artifacts(), root.uploads()}) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
      return absl::FailedPreconditionError(
          StrCat("can't create the folder ", folder.string(), ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status RemoveFolder(const std::filesystem::path& folder) {
  std::random_device random;
  const std::filesystem::path hidden =
      folder.parent_path() / absl::StrFormat("%s%08x%08x", kRemoved, random(), random());
  std::error_code error;
  std::filesystem::rename(folder, hidden, error);
  if (!error) std::filesystem::remove_all(hidden, error);
  if (!error) return absl::OkStatus();
  return absl::InternalError(
      StrCat("can't remove the folder ", folder.string(), ": ", error.message()));
}

absl::Status SweepRemovedFolders(const DataRoot& root) {
  for (const auto& parent : {root.models(), root.artifacts()}) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(parent, error)) {
      if (!entry.path().filename().string().starts_with(kRemoved)) continue;
      std::filesystem::remove_all(entry.path(), error);
      if (error) break;
    }
    if (error) {
      return absl::InternalError(
          StrCat("can't remove a folder under ", parent.string(), ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status FieldError(absl::StatusCode code, std::string_view field, std::string_view found,
                        std::string_view expected) {
  return absl::Status(code, StrCat(field, ": found ", found, ", expected ", expected));
}

absl::Status CheckName(std::string_view field, std::string_view name) {
  const bool valid = !name.empty() && name.size() <= kLongestName && name[0] != '.' &&
                     name[0] != '-' && std::all_of(name.begin(), name.end(), IsNameByte);
  if (valid) return absl::OkStatus();
  return FieldError(
      absl::StatusCode::kInvalidArgument, field, Quoted(name),
      "a name of 1 to 128 letters, digits, '.', '_' or '-' that starts with a letter, "
      "a digit or '_'");
}

absl::StatusOr<std::filesystem::path> FindModel(const DataRoot& root, std::string_view field,
                                                std::string_view name) {
  if (absl::Status status = CheckName(field, name); !status.ok()) return status;
  const std::filesystem::path model = root.models() / name;
  if (IsFile(model / "config.json")) return model;
  const std::filesystem::path artifact = root.artifacts() / name;
  if (IsFile(artifact / "nibble.json") && IsFile(artifact / "config.json")) return artifact;
  return FieldError(absl::StatusCode::kNotFound, field, Quoted(name),
                    "the name of a model under the data root's models or artifacts");
}

absl::StatusOr<std::filesystem::path> FindCorpus(const DataRoot& root, std::string_view field,
                                                 std::string_view name) {
  if (absl::Status status = CheckName(field, name); !status.ok()) return status;
  const std::filesystem::path corpus = root.corpora() / name;
  if (corpus.extension() != ".txt" && corpus.extension() != ".jsonl") {
    return FieldError(absl::StatusCode::kInvalidArgument, field, Quoted(name),
                      "a file name that ends in .txt or .jsonl");
  }
  if (IsFile(corpus)) return corpus;
  return FieldError(absl::StatusCode::kNotFound, field, Quoted(name),
                    "the name of a file under the data root's corpora");
}

}  // namespace nibble
