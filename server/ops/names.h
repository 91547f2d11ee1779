// The data root and the names that clients may use for what lies in it.
#pragma once

#include <filesystem>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// One folder holds everything that a daemon keeps.
struct DataRoot {
  std::filesystem::path folder;
  std::filesystem::path models() const { return folder / "models"; }        // checkpoints, brought
  std::filesystem::path corpora() const { return folder / "corpora"; }      // .txt and .jsonl
  std::filesystem::path artifacts() const { return folder / "artifacts"; }  // made by jobs
  std::filesystem::path uploads() const { return folder / "uploads"; }      // not committed yet
  std::filesystem::path database() const { return folder / "nibble.db"; }
};

// Creates the folders that are missing.
absl::Status CreateFolders(const DataRoot& root);

// Removes a model's folder: out of sight first, so that a half-removed one is never found under its
// name.
absl::Status RemoveFolder(const std::filesystem::path& folder);
// Ends the removals that a daemon's end has cut short.
absl::Status SweepRemovedFolders(const DataRoot& root);

// "<field>: found <found>, expected <expected>": the text of every refusal.
absl::Status FieldError(absl::StatusCode code, std::string_view field, std::string_view found,
                        std::string_view expected);

// 1 to 128 letters, digits, '.', '_' and '-', not starting with '.' or '-'; so neither paths nor
// hidden files. INVALID_ARGUMENT otherwise.
absl::Status CheckName(std::string_view field, std::string_view name);

// models/NAME or artifacts/NAME that holds a config.json (a committed artifact: nibble.json too).
// INVALID_ARGUMENT for a bad name, NOT_FOUND otherwise.
absl::StatusOr<std::filesystem::path> FindModel(const DataRoot& root, std::string_view field,
                                                std::string_view name);
// corpora/NAME, ending in .txt or .jsonl. INVALID_ARGUMENT for a bad name, NOT_FOUND otherwise.
absl::StatusOr<std::filesystem::path> FindCorpus(const DataRoot& root, std::string_view field,
                                                 std::string_view name);

}  // namespace nibble
