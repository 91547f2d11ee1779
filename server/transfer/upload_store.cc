#include "server/transfer/upload_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/time/clock.h"
#include "quant/base/files.h"
#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostFiles = 10'000;
constexpr char kSpec[] = ".upload.json";  // no file's name begins so
constexpr char kNewSpec[] = ".upload.json.new";
constexpr char kPart[] = ".part";  // of a file that is not complete

absl::Status Invalid(std::string_view field, std::string_view found, std::string_view expected) {
  return FieldError(absl::StatusCode::kInvalidArgument, field, found, expected);
}

bool IsSha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

absl::Status CheckFiles(const UploadSpec& spec) {
  if (spec.files.empty() || spec.files.size() > kMostFiles) {
    return Invalid("files", StrCat(spec.files.size()), StrCat("1 to ", kMostFiles));
  }
  std::set<std::string> seen;
  int64_t total = 0;
  for (const UploadFile& file : spec.files) {
    NIBBLE_RETURN_IF_ERROR(CheckName("files.path", file.path));
    if (!seen.insert(file.path).second) return Invalid("files.path", file.path, "each path once");
    if (file.path.ends_with(kPart)) {
      return Invalid("files.path", file.path, StrCat("a name that does not end in ", kPart));
    }
    if (file.size < 0 || __builtin_add_overflow(total, file.size, &total)) {
      return Invalid("files.size", StrCat(file.size), "0 or more, less than 2^63 together");
    }
    if (!IsSha256(file.sha256)) {
      return Invalid("files.sha256", StrCat(file.sha256.size(), " characters"),
                     "64 lower-case hexadecimal digits");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(const UploadSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(CheckName("upload_id", spec.id));
  NIBBLE_RETURN_IF_ERROR(CheckName(spec.corpus ? "corpus" : "model", spec.name));
  NIBBLE_RETURN_IF_ERROR(CheckFiles(spec));
  if (!spec.corpus) {
    const auto is_config = [](const UploadFile& file) { return file.path == "config.json"; };
    const auto is_weights = [](const UploadFile& file) {
      return file.path.ends_with(".safetensors");
    };
    if (std::ranges::none_of(spec.files, is_config) ||
        std::ranges::none_of(spec.files, is_weights)) {
      return Invalid("files", "no config.json, or no .safetensors", "the files of a model");
    }
    return absl::OkStatus();
  }
  if (!spec.name.ends_with(".txt") && !spec.name.ends_with(".jsonl")) {
    return Invalid("corpus", StrCat("\"", spec.name, "\""), "a name that ends in .txt or .jsonl");
  }
  if (spec.files.size() != 1 || spec.files[0].path != spec.name) {
    return Invalid("files", StrCat(spec.files.size(), " files, first \"", spec.files[0].path, "\""),
                   "one file of the corpus's name");
  }
  return absl::OkStatus();
}

Json SpecJson(const UploadSpec& spec) {
  Json files = Json::array();
  for (const UploadFile& file : spec.files) {
    files.push_back({{"path", file.path}, {"size", file.size}, {"sha256", file.sha256}});
  }
  return {{"corpus", spec.corpus}, {"name", spec.name}, {"files", std::move(files)}};
}

int64_t SizeOf(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  return error ? 0 : static_cast<int64_t>(size);
}

absl::Status Remove(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return error ? FileError(path, "remove", error.value()) : absl::OkStatus();
}

absl::StatusOr<int64_t> BytesUnder(const fs::path& folder) {
  int64_t bytes = 0;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(folder, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code gone;  // while we look
    if (entry->is_regular_file(gone)) bytes += SizeOf(entry->path());
  }
  if (error) return FileError(folder, "read", error.value());
  return bytes;
}

}  // namespace

Upload::~Upload() { store_.Release(spec_.id); }

absl::Status Upload::Restore() {
  progress_.clear();
  for (const UploadFile& file : spec_.files) {
    std::error_code error;
    UploadProgress& progress = progress_.emplace_back();
    progress.complete = fs::exists(folder_ / file.path, error);
    progress.received = progress.complete ? file.size : SizeOf(folder_ / StrCat(file.path, kPart));
    if (error) return FileError(folder_, "read", error.value());
  }
  return absl::OkStatus();
}

absl::Status Upload::StartFile(const std::string& path, int64_t offset) {
  const auto found = std::ranges::find(spec_.files, path, &UploadFile::path);
  if (found == spec_.files.end()) return Invalid("file.path", path, "one of the upload's files");
  current_ = static_cast<size_t>(found - spec_.files.begin());
  const UploadProgress& progress = progress_[current_];
  if (offset != progress.received) {
    return FieldError(absl::StatusCode::kOutOfRange, "file.offset", StrCat(offset),
                      StrCat(progress.received, ", what has come of ", path));
  }
  file_.Reset();
  if (progress.complete) return absl::OkStatus();
  const fs::path part = folder_ / StrCat(path, kPart);
  file_ = FileDescriptor(open(part.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file_.valid()) return FileError(part, "open", errno);
  return found->size == progress.received ? FinishFile() : absl::OkStatus();
}

absl::Status Upload::Append(std::string_view bytes) {
  const UploadFile& file = spec_.files[current_];
  UploadProgress& progress = progress_[current_];
  if (progress.received + static_cast<int64_t>(bytes.size()) > file.size) {
    return FieldError(
        absl::StatusCode::kOutOfRange, "data",
        StrCat(progress.received + static_cast<int64_t>(bytes.size()), " bytes of ", file.path),
        StrCat("at most ", file.size));
  }
  while (!bytes.empty()) {
    const ssize_t count = write(file_.get(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FileError(folder_ / file.path, "write", errno);
    progress.received += count;
    store_.Received(spec_.id, count);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return progress.received == file.size && file_.valid() ? FinishFile() : absl::OkStatus();
}

absl::Status Upload::FinishFile() {
  const UploadFile& file = spec_.files[current_];
  const fs::path part = folder_ / StrCat(file.path, kPart);
  if (fsync(file_.get()) != 0) return FileError(part, "fsync", errno);
  file_.Reset();
  NIBBLE_ASSIGN_OR_RETURN(const std::string found, Sha256File(part));
  if (found != file.sha256) {
    progress_[current_] = {};
    store_.Received(spec_.id, -file.size);
    NIBBLE_RETURN_IF_ERROR(Remove(part));
    return absl::DataLossError(
        StrCat(file.path, ": found sha256 ", found, ", expected ", file.sha256));
  }
  std::error_code error;
  fs::rename(part, folder_ / file.path, error);
  if (error) return FileError(part, "rename", error.value());
  progress_[current_].complete = true;
  return absl::OkStatus();
}

absl::Status Upload::CheckContent() const {
  if (spec_.corpus) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(LoadModelConfig(folder_).status());
  NIBBLE_RETURN_IF_ERROR(TensorSource::Open(folder_).status());
  if (IsArtifact(folder_)) {
    NIBBLE_RETURN_IF_ERROR(ReadArtifact(folder_, Verify::kChecksums).status());
  }
  return store_.options_.check_model(folder_);
}

absl::Status Upload::Commit() {
  for (size_t i = 0; i < progress_.size(); ++i) {
    if (progress_[i].complete) continue;
    if (progress_[i].received == spec_.files[i].size) {  // empty, or its stream broke at the sum
      NIBBLE_RETURN_IF_ERROR(StartFile(spec_.files[i].path, progress_[i].received));
      continue;
    }
    return absl::FailedPreconditionError(StrCat(spec_.files[i].path, ": found ",
                                                progress_[i].received, " bytes, expected ",
                                                spec_.files[i].size));
  }
  if (absl::Status content = CheckContent(); !content.ok()) {
    NIBBLE_RETURN_IF_ERROR(Discard());  // the same files will never be a model
    return content;
  }
  absl::MutexLock lock(&store_.names_);
  NIBBLE_RETURN_IF_ERROR(store_.CheckNameLocked(spec_));
  const fs::path target = store_.Target(spec_);
  if (spec_.corpus) {
    NIBBLE_RETURN_IF_ERROR(ReplaceFile(folder_ / spec_.name, target));
    return Remove(folder_);
  }
  NIBBLE_RETURN_IF_ERROR(Remove(folder_ / kSpec));
  NIBBLE_RETURN_IF_ERROR(SyncFolder(folder_));
  return ReplaceFile(folder_, target);
}

absl::Status Upload::Discard() {
  file_.Reset();
  progress_.clear();
  return Remove(folder_);
}

std::vector<UploadProgress> Upload::progress() const { return progress_; }

fs::path UploadStore::Target(const UploadSpec& spec) const {
  if (spec.corpus) return options_.root.corpora() / spec.name;
  const auto is_manifest = [](const UploadFile& file) { return file.path == "nibble.json"; };
  const bool artifact = std::ranges::any_of(spec.files, is_manifest);
  return (artifact ? options_.root.artifacts() : options_.root.models()) / spec.name;
}

absl::Status UploadStore::CheckNameLocked(const UploadSpec& spec) const {
  const auto taken = [&](const fs::path& path) {
    std::error_code error;
    return fs::exists(fs::symlink_status(path, error));
  };
  if (spec.corpus ? taken(options_.root.corpora() / spec.name)
                  : taken(options_.root.models() / spec.name) ||
                        taken(options_.root.artifacts() / spec.name)) {
    return FieldError(absl::StatusCode::kAlreadyExists, spec.corpus ? "corpus" : "model",
                      StrCat("\"", spec.name, "\""), "a name that is free");
  }
  return spec.corpus ? absl::OkStatus() : options_.check_free(spec.name);
}

absl::Status UploadStore::CheckName(const UploadSpec& spec) const {
  absl::MutexLock lock(&names_);
  return CheckNameLocked(spec);
}

absl::StatusOr<std::optional<int64_t>> UploadStore::QuotaLeft() const {
  if (options_.quota_bytes == 0) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t used, BytesUnder(options_.root.folder));
  return std::max<int64_t>(options_.quota_bytes - used, 0);
}

absl::Status UploadStore::Reserve(const Upload& upload) {
  int64_t missing = 0;
  for (size_t i = 0; i < upload.progress_.size(); ++i) {
    missing += upload.spec_.files[i].size - upload.progress_[i].received;
  }
  int64_t others = 0;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, bytes] : held_) others += bytes;
    held_[upload.spec_.id] = missing;
  }
  const auto refuse = [&](std::string_view what, int64_t free) {
    return absl::ResourceExhaustedError(
        StrCat(what, ": found ", free, " bytes free, of which other uploads will fill ", others,
               ", expected at least ", missing, " for this one"));
  };
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> quota, QuotaLeft());
  if (quota && *quota - others < missing) return refuse("quota", *quota);
  std::error_code error;
  const auto space = fs::space(options_.root.folder, error);
  if (error) return FileError(options_.root.folder, "read", error.value());
  const auto free = static_cast<int64_t>(space.available);
  return free - others < missing ? refuse("disk", free) : absl::OkStatus();
}

void UploadStore::Received(const std::string& id, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  held_[id] -= bytes;
}

absl::StatusOr<std::unique_ptr<Upload>> UploadStore::Open(const UploadSpec& spec) {
  NIBBLE_RETURN_IF_ERROR(CheckSpec(spec));
  NIBBLE_RETURN_IF_ERROR(CheckName(spec));
  NIBBLE_RETURN_IF_ERROR(Sweep());
  {
    absl::MutexLock lock(&mutex_);
    if (!held_.emplace(spec.id, 0).second) {
      return absl::AbortedError(
          StrCat("upload_id: found ", spec.id, ", which another stream sends"));
    }
  }
  const fs::path folder = options_.root.uploads() / spec.id;
  auto upload = std::unique_ptr<Upload>(new Upload(*this, spec, folder));
  std::error_code error;
  if (fs::exists(folder / kSpec, error)) {
    NIBBLE_ASSIGN_OR_RETURN(const Json earlier, ReadJsonFile(folder / kSpec));
    if (earlier != SpecJson(spec)) {
      return FieldError(absl::StatusCode::kAlreadyExists, "upload_id", spec.id,
                        "an id of its own: this one began with other files");
    }
    NIBBLE_RETURN_IF_ERROR(upload->Restore());
    NIBBLE_RETURN_IF_ERROR(Reserve(*upload));
    return upload;
  }
  upload->progress_.resize(spec.files.size());
  NIBBLE_RETURN_IF_ERROR(Reserve(*upload));
  NIBBLE_RETURN_IF_ERROR(Remove(folder));
  fs::create_directories(folder, error);
  if (error) return FileError(folder, "create", error.value());
  // Whole or not at all: an upload is known by it.
  NIBBLE_RETURN_IF_ERROR(WriteFile(folder / kNewSpec, SpecJson(spec).dump()));
  NIBBLE_RETURN_IF_ERROR(ReplaceFile(folder / kNewSpec, folder / kSpec));
  return upload;
}

void UploadStore::Release(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  held_.erase(id);
}

absl::Status UploadStore::Sweep() {
  absl::MutexLock lock(&mutex_);
  std::error_code error;
  const auto oldest = fs::file_time_type::clock::now() - absl::ToChronoSeconds(options_.keep);
  for (const auto& entry : fs::directory_iterator(options_.root.uploads(), error)) {
    if (held_.contains(entry.path().filename().string())) continue;
    // The newest of its files tells when it was last fed.
    fs::file_time_type newest = entry.last_write_time(error);
    for (const auto& file : fs::directory_iterator(entry.path(), error)) {
      newest = std::max(newest, file.last_write_time(error));
    }
    if (newest < oldest) NIBBLE_RETURN_IF_ERROR(Remove(entry.path()));
  }
  return error ? FileError(options_.root.uploads(), "read", error.value()) : absl::OkStatus();
}

}  // namespace nibble
