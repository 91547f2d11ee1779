// Uploads of models and corpora: staged under the data root's uploads/, kept over broken streams
// and restarts, committed by a rename. Knows no RPC.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/ops/file_descriptor.h"
#include "server/ops/names.h"

namespace nibble {

struct UploadFile {
  std::string path;  // a plain file name
  int64_t size = 0;  // bytes
  std::string sha256;
  bool operator==(const UploadFile&) const = default;
};

// What an upload brings.
struct UploadSpec {
  std::string id;
  bool corpus = false;  // else a model
  std::string name;
  std::vector<UploadFile> files;
  bool operator==(const UploadSpec&) const = default;
};

struct UploadProgress {
  int64_t received = 0;   // bytes on disk
  bool complete = false;  // and of the right sha256
};

class UploadStore;

// One stream's hold on an upload. What has come stays when it goes. Not thread-safe.
class Upload {
 public:
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  // What follows belongs to this file. OUT_OF_RANGE when `offset` is not what has come so far.
  absl::Status StartFile(const std::string& path, int64_t offset);
  // OUT_OF_RANGE beyond the file's size; DATA_LOSS when the whole file has another sha256: its
  // bytes are dropped; RESOURCE_EXHAUSTED when the disk is full.
  absl::Status Append(std::string_view bytes);
  // Makes the model or corpus appear. FAILED_PRECONDITION with bytes missing, INVALID_ARGUMENT for
  // what is no model, DATA_LOSS for an artifact that does not match itself: then it is discarded.
  // ALREADY_EXISTS when the name was taken meanwhile.
  absl::Status Commit();
  absl::Status Discard();
  // In the order of the spec's files; empty after Discard.
  std::vector<UploadProgress> progress() const;
  const UploadSpec& spec() const { return spec_; }

 private:
  friend class UploadStore;
  Upload(UploadStore& store, UploadSpec spec, std::filesystem::path folder)
      : store_(store), spec_(std::move(spec)), folder_(std::move(folder)) {}
  absl::Status Restore();
  absl::Status FinishFile();
  absl::Status CheckContent() const;

  UploadStore& store_;
  const UploadSpec spec_;
  const std::filesystem::path folder_;
  std::vector<UploadProgress> progress_;
  size_t current_ = 0;
  FileDescriptor file_;  // of `current_`, open while its bytes come
};

// Thread-safe. Outlives its uploads.
class UploadStore {
 public:
  struct Options {
    DataRoot root;
    int64_t quota_bytes = 0;                // of everything under the data root; 0: none
    absl::Duration keep = absl::Hours(24);  // what is not resumed for so long is removed
    // Says whether a model's name is free of unfinished jobs; called under `names`.
    std::function<absl::Status(const std::string& name)> check_free = [](const std::string&) {
      return absl::OkStatus();
    };
    // Says what a model's folder lacks to be shown; called before it gets its name.
    std::function<absl::Status(const std::filesystem::path& folder)> check_model =
        [](const std::filesystem::path&) { return absl::OkStatus(); };
  };
  // `names` is held while a name is checked and taken.
  UploadStore(Options options, absl::Mutex& names) : options_(std::move(options)), names_(names) {}

  // Begins an upload, or takes it up again. INVALID_ARGUMENT for bad names and paths,
  // ALREADY_EXISTS when the name is taken or the id is of another spec, RESOURCE_EXHAUSTED for
  // quota and disk, ABORTED while another stream holds it.
  absl::StatusOr<std::unique_ptr<Upload>> Open(const UploadSpec& spec) ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes what was not resumed in time.
  absl::Status Sweep() ABSL_LOCKS_EXCLUDED(mutex_);
  // Bytes that the quota leaves; none without a quota.
  absl::StatusOr<std::optional<int64_t>> QuotaLeft() const;

 private:
  friend class Upload;
  absl::Status CheckName(const UploadSpec& spec) const ABSL_LOCKS_EXCLUDED(names_);
  absl::Status CheckNameLocked(const UploadSpec& spec) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(names_);
  // Keeps room for what `upload` still lacks, beside what the other streams still lack.
  absl::Status Reserve(const Upload& upload) ABSL_LOCKS_EXCLUDED(mutex_);
  void Received(const std::string& id, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The place that the spec's name takes.
  std::filesystem::path Target(const UploadSpec& spec) const;
  void Release(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  absl::Mutex& names_;
  absl::Mutex mutex_;
  // Uploads that a stream holds: id -> bytes that they may still bring.
  std::map<std::string, int64_t> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nibble
