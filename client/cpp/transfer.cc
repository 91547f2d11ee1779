#include "client/cpp/transfer.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kDataBytes = size_t{1} << 20;

absl::Status FileError(const fs::path& path, std::string_view what) {
  return absl::InternalError(StrCat(path.string(), ": ", what));
}

// Plain files, hidden ones left out; sorted.
absl::StatusOr<std::vector<fs::path>> PlainFiles(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename().string()[0] == '.') continue;
    const bool plain = entry.is_regular_file(error);
    if (error) return absl::NotFoundError(StrCat(entry.path().string(), ": ", error.message()));
    if (plain) files.push_back(entry.path());
  }
  if (error) return absl::NotFoundError(StrCat(folder.string(), ": ", error.message()));
  std::ranges::sort(files);
  return files;
}

// Equal files under an equal name give an equal id, so that a push can be taken up by another.
std::string UploadId(const v1::UploadStart& start) {
  std::string text = start.has_corpus() ? start.corpus() : start.model();
  for (const v1::FileInfo& file : start.files()) {
    text += StrCat("\n", file.path(), " ", file.size(), " ", file.sha256());
  }
  return Sha256(text);
}

class Push {
 public:
  Push(Client& client, std::vector<fs::path> files, v1::UploadStart start, OnTransfer on_progress)
      : client_(client),
        files_(std::move(files)),
        start_(std::move(start)),
        on_progress_(std::move(on_progress)) {}

  absl::Status Run() {
    NIBBLE_RETURN_IF_ERROR(Describe());
    int64_t before = -1;
    while (true) {
      absl::Status status = Try();
      // A server that is back takes up what has come.
      if (!absl::IsUnavailable(status) || progress_.done <= before) return status;
      before = progress_.done;
    }
  }

 private:
  absl::Status Describe() {
    for (const fs::path& path : files_) {
      v1::FileInfo& file = *start_.add_files();
      file.set_path(start_.has_corpus() ? start_.corpus() : path.filename().string());
      std::error_code error;
      file.set_size(static_cast<int64_t>(fs::file_size(path, error)));
      if (error) return FileError(path, error.message());
      NIBBLE_ASSIGN_OR_RETURN(*file.mutable_sha256(), Sha256File(path));
      progress_.total += file.size();
    }
    start_.set_upload_id(UploadId(start_));
    return absl::OkStatus();
  }

  absl::Status Try() {
    const auto start = [&](const Client::Send& send) {
      v1::UploadRequest message;
      *message.mutable_start() = start_;
      send(message);
      return absl::OkStatus();
    };
    NIBBLE_ASSIGN_OR_RETURN(const v1::UploadResponse there, client_.Upload(start));
    const auto rest = [&](const Client::Send& send) -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(start(send));
      return SendFiles(there, send);
    };
    NIBBLE_ASSIGN_OR_RETURN(const v1::UploadResponse done, client_.Upload(rest));
    return done.committed() ? absl::OkStatus()
                            : absl::UnavailableError("the upload ended without a commit");
  }

  absl::Status SendFiles(const v1::UploadResponse& there, const Client::Send& send) {
    progress_.done = 0;
    for (const v1::UploadedFile& file : there.files()) progress_.done += file.received_bytes();
    for (size_t i = 0; i < files_.size(); ++i) {
      const v1::UploadedFile& file = there.files(static_cast<int>(i));
      if (file.complete()) continue;
      NIBBLE_ASSIGN_OR_RETURN(const bool open, SendFile(files_[i], file, send));
      if (!open) return absl::OkStatus();  // the call's status says why
    }
    v1::UploadRequest message;
    message.set_end(v1::UPLOAD_END_COMMIT);
    send(message);
    return absl::OkStatus();
  }

  // False when the server has ended the stream.
  absl::StatusOr<bool> SendFile(const fs::path& path, const v1::UploadedFile& there,
                                const Client::Send& send) {
    std::ifstream file(path, std::ios::binary);
    file.seekg(there.received_bytes());
    if (!file) return FileError(path, "can't be read");
    progress_.file = path.filename().string();
    v1::UploadRequest message;
    message.mutable_file()->set_path(there.path());
    message.mutable_file()->set_offset(there.received_bytes());
    if (!send(message)) return false;
    std::string buffer(kDataBytes, '\0');
    while (file) {
      file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      const auto count = static_cast<size_t>(file.gcount());
      if (count == 0) break;
      message.set_data(buffer.substr(0, count));
      if (!send(message)) return false;
      progress_.done += static_cast<int64_t>(count);
      on_progress_(progress_);
    }
    if (file.bad()) return FileError(path, "can't be read");
    return true;
  }

  Client& client_;
  const std::vector<fs::path> files_;
  v1::UploadStart start_;
  const OnTransfer on_progress_;
  TransferProgress progress_;
};

class Pull {
 public:
  Pull(Client& client, std::string name, fs::path folder, OnTransfer on_progress)
      : client_(client),
        name_(std::move(name)),
        folder_(std::move(folder)),
        staging_(folder_.parent_path() / StrCat(".", folder_.filename().string(), ".partial")),
        on_progress_(std::move(on_progress)) {}

  absl::Status Run() {
    std::error_code error;
    if (fs::exists(fs::symlink_status(folder_, error))) {
      return absl::AlreadyExistsError(
          StrCat(folder_.string(), ": found it, expected a folder that does not exist"));
    }
    absl::Status status = Download();
    if (absl::IsOutOfRange(status) || absl::IsNotFound(status)) {
      // What an earlier pull left may be of other files: once more, from the start.
      fs::remove_all(staging_, error);
      status = Download();
    }
    if (absl::IsNotFound(status)) fs::remove_all(staging_, error);
    NIBBLE_RETURN_IF_ERROR(status);
    return Check();
  }

 private:
  absl::Status Download() {
    std::error_code error;
    fs::create_directories(staging_, error);
    if (error) return FileError(staging_, error.message());
    progress_ = {};
    absl::Status taken;
    const absl::Status status =
        client_.Download(Request(), [&](const v1::DownloadResponse& message) {
          taken = Take(message);
          return taken.ok();
        });
    return taken.ok() ? status : taken;
  }

  // What came of an earlier pull is not sent again.
  v1::DownloadRequest Request() const {
    v1::DownloadRequest request;
    request.set_model(name_);
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(staging_, error)) {
      v1::FileStart& have = *request.add_have();
      have.set_path(entry.path().filename().string());
      have.set_offset(static_cast<int64_t>(entry.file_size(error)));
    }
    return request;
  }

  absl::Status Take(const v1::DownloadResponse& message) {
    switch (message.part_case()) {
      case v1::DownloadResponse::kManifest:
        return Begin(message.manifest());
      case v1::DownloadResponse::kFile:
        return StartFile(message.file().path());
      case v1::DownloadResponse::kData:
        out_.write(message.data().data(), static_cast<std::streamsize>(message.data().size()));
        if (!out_) return FileError(staging_ / progress_.file, "can't be written");
        progress_.done += static_cast<int64_t>(message.data().size());
        on_progress_(progress_);
        return absl::OkStatus();
      case v1::DownloadResponse::PART_NOT_SET:
        break;
    }
    return absl::InternalError("the download: found a message without a part, expected one");
  }

  absl::Status Begin(const v1::DownloadManifest& manifest) {
    manifest_ = manifest;
    for (const v1::FileInfo& file : manifest.files()) {
      // The server's word is not a path of ours.
      if (file.path().empty() || file.path()[0] == '.' ||
          file.path().find('/') != std::string::npos) {
        return absl::InternalError(
            StrCat("the download: found the path \"", file.path(), "\", expected a file name"));
      }
      progress_.total += file.size();
      std::error_code error;
      const auto there = fs::file_size(staging_ / file.path(), error);
      if (!error) progress_.done += static_cast<int64_t>(there);
    }
    return absl::OkStatus();
  }

  absl::Status StartFile(const std::string& path) {
    const auto known = [&](const v1::FileInfo& file) { return file.path() == path; };
    if (std::ranges::none_of(manifest_.files(), known)) {
      return absl::InternalError(
          StrCat("the download: found the file \"", path, "\", expected one of the manifest"));
    }
    progress_.file = path;
    out_.close();
    out_.open(staging_ / path, std::ios::binary | std::ios::app);
    return out_ ? absl::OkStatus() : FileError(staging_ / path, "can't be written");
  }

  absl::Status Check() {
    out_.close();
    if (!out_) return FileError(staging_, "can't be written");
    for (const v1::FileInfo& file : manifest_.files()) {
      const fs::path path = staging_ / file.path();
      if (file.size() == 0) std::ofstream(path, std::ios::app);
      NIBBLE_ASSIGN_OR_RETURN(const std::string found, Sha256File(path));
      if (found == file.sha256()) continue;
      std::error_code error;
      fs::remove(path, error);
      return absl::DataLossError(StrCat(file.path(), ": found sha256 ", found, ", expected ",
                                        file.sha256(), "; pull again"));
    }
    std::error_code error;
    fs::rename(staging_, folder_, error);
    return error ? FileError(folder_, error.message()) : absl::OkStatus();
  }

  Client& client_;
  const std::string name_;
  const fs::path folder_;
  const fs::path staging_;
  const OnTransfer on_progress_;
  v1::DownloadManifest manifest_;
  TransferProgress progress_;
  std::ofstream out_;
};

}  // namespace

absl::Status PushModel(Client& client, const fs::path& folder, const std::string& name,
                       const OnTransfer& on_progress) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<fs::path> files, PlainFiles(folder));
  v1::UploadStart start;
  start.set_model(name);
  return Push(client, std::move(files), std::move(start), on_progress).Run();
}

absl::Status PushCorpus(Client& client, const fs::path& file, const std::string& name,
                        const OnTransfer& on_progress) {
  v1::UploadStart start;
  start.set_corpus(name);
  return Push(client, {file}, std::move(start), on_progress).Run();
}

absl::Status PullModel(Client& client, const std::string& name, const fs::path& folder,
                       const OnTransfer& on_progress) {
  fs::path whole = fs::absolute(folder).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // of "out/"
  return Pull(client, name, std::move(whole), on_progress).Run();
}

}  // namespace nibble
