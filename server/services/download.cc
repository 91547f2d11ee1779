#include "server/services/download.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kDataBytes = size_t{1} << 20;

// The plain files of a model's folder, or the corpus; sorted.
absl::StatusOr<std::vector<fs::path>> FilesOf(const v1::DownloadRequest& request,
                                              const DataRoot& root) {
  if (request.source_case() == v1::DownloadRequest::kCorpus) {
    NIBBLE_ASSIGN_OR_RETURN(const fs::path corpus, FindCorpus(root, "corpus", request.corpus()));
    return std::vector<fs::path>{corpus};
  }
  if (request.source_case() != v1::DownloadRequest::kModel) {
    return FieldError(absl::StatusCode::kInvalidArgument, "source", "none", "model or corpus");
  }
  NIBBLE_ASSIGN_OR_RETURN(const fs::path folder, FindModel(root, "model", request.model()));
  std::vector<fs::path> files;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const bool plain = CheckName("path", entry.path().filename().string()).ok();
    if (plain && entry.is_regular_file(error)) files.push_back(entry.path());
  }
  if (error) return absl::InternalError(StrCat(folder.string(), ": ", error.message()));
  std::ranges::sort(files);
  return files;
}

// What is to be sent of a file.
struct Part {
  fs::path file;
  int64_t offset = 0;
  int64_t size = 0;
};

// One message is made by `tasks` whenever the one before is written.
class DownloadStream : public grpc::ServerWriteReactor<v1::DownloadResponse> {
 public:
  DownloadStream(const v1::DownloadRequest& request, const DataRoot& root, Metrics& metrics,
                 TaskThread& tasks)
      : request_(request), root_(root), timer_(metrics, "Download"), tasks_(tasks) {
    tasks_.Run([this] { Send(Begin()); });
  }

  void OnWriteDone(bool ok) override {
    tasks_.Run([this, ok] { ok ? Next() : End(absl::CancelledError("the stream is closed")); });
  }
  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  void OnDone() override { delete this; }

 private:
  // The manifest.
  absl::Status Begin() {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request_.version()));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<fs::path> files, FilesOf(request_, root_));
    v1::DownloadManifest& manifest = *message_.mutable_manifest();
    manifest.set_model_version(request_.has_model() ? 1 : 0);
    std::set<std::string> wanted(request_.paths().begin(), request_.paths().end());
    const bool all = wanted.empty();
    for (const fs::path& file : files) {
      if (cancelled()) return absl::CancelledError("cancelled by the client");
      v1::FileInfo& info = *manifest.add_files();
      info.set_path(file.filename().string());
      std::error_code error;
      info.set_size(static_cast<int64_t>(fs::file_size(file, error)));
      if (error) return Deleted(file);
      NIBBLE_ASSIGN_OR_RETURN(*info.mutable_sha256(), Sha256File(file));
      if (all || wanted.erase(info.path()) > 0) parts_.push_back({file, 0, info.size()});
    }
    if (!wanted.empty()) {
      return FieldError(absl::StatusCode::kNotFound, "paths", *wanted.begin(),
                        "files of the model or corpus");
    }
    return SkipWhatIsThere();
  }

  absl::Status SkipWhatIsThere() {
    for (const v1::FileStart& have : request_.have()) {
      const auto part = std::ranges::find_if(
          parts_, [&](const Part& p) { return p.file.filename() == have.path(); });
      if (part == parts_.end()) {
        return FieldError(absl::StatusCode::kNotFound, "have.path", have.path(),
                          "a file that is to be sent");
      }
      if (have.offset() < 0 || have.offset() > part->size) {
        return FieldError(absl::StatusCode::kOutOfRange, "have.offset", StrCat(have.offset()),
                          StrCat("0 to ", part->size, ", the size of ", have.path()));
      }
      part->offset = have.offset();
    }
    return absl::OkStatus();
  }

  void Next() {
    message_.Clear();
    while (!file_.is_open() && next_ < parts_.size() &&
           parts_[next_].offset == parts_[next_].size) {
      ++next_;
    }
    if (next_ == parts_.size()) return End(absl::OkStatus());
    Send(file_.is_open() ? Data() : StartFile());
  }

  absl::Status StartFile() {
    const Part& part = parts_[next_];
    file_.open(part.file, std::ios::binary);
    file_.seekg(part.offset);
    if (!file_) return Deleted(part.file);
    message_.mutable_file()->set_path(part.file.filename().string());
    message_.mutable_file()->set_offset(part.offset);
    return absl::OkStatus();
  }

  absl::Status Data() {
    Part& part = parts_[next_];
    std::string& data = *message_.mutable_data();
    data.resize(std::min<size_t>(kDataBytes, static_cast<size_t>(part.size - part.offset)));
    file_.read(data.data(), static_cast<std::streamsize>(data.size()));
    if (!file_) return Deleted(part.file);
    part.offset += static_cast<int64_t>(data.size());
    if (part.offset == part.size) {
      file_.close();
      ++next_;
    }
    return absl::OkStatus();
  }

  static absl::Status Deleted(const fs::path& file) {
    return absl::AbortedError(
        StrCat(file.filename().string(), ": found it gone or shorter, expected it unchanged"));
  }

  void Send(const absl::Status& status) {
    if (!status.ok()) return End(status);
    StartWrite(&message_);
  }

  // The last thing: this may be gone afterwards.
  void End(const absl::Status& status) { Finish(timer_.Done(ToGrpcStatus(status))); }

  bool cancelled() {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }

  const v1::DownloadRequest request_;
  const DataRoot root_;
  RpcTimer timer_;
  TaskThread& tasks_;
  v1::DownloadResponse message_;
  std::vector<Part> parts_;
  size_t next_ = 0;
  std::ifstream file_;  // of parts_[next_], while it is sent

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::DownloadResponse>* StartDownload(const v1::DownloadRequest& request,
                                                              const DataRoot& root,
                                                              Metrics& metrics, TaskThread& tasks) {
  return new DownloadStream(request, root, metrics, tasks);
}

}  // namespace nibble
