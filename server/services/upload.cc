#include "server/services/upload.h"

#include <memory>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"

namespace nibble {
namespace {

constexpr size_t kLargestData = size_t{2} << 20;

UploadSpec SpecOf(const v1::UploadStart& start) {
  UploadSpec spec;
  spec.id = start.upload_id();
  spec.corpus = start.has_corpus();
  spec.name = start.has_corpus() ? start.corpus() : start.model();
  for (const v1::FileInfo& file : start.files()) {
    spec.files.push_back({file.path(), file.size(), file.sha256()});
  }
  return spec;
}

// One message is read at a time and worked on by `tasks`.
class UploadStream : public grpc::ServerReadReactor<v1::UploadRequest> {
 public:
  UploadStream(v1::UploadResponse* response, UploadStore& store, Metrics& metrics,
               TaskThread& tasks)
      : response_(response), store_(store), timer_(metrics, "Upload"), tasks_(tasks) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    tasks_.Run([this, ok] { ok ? Take() : Conclude(absl::OkStatus()); });
  }
  void OnDone() override { delete this; }

 private:
  void Take() {
    const absl::Status status = Apply();
    if (!status.ok() || ended_) return Conclude(status);
    StartRead(&message_);
  }

  absl::Status Apply() {
    const auto refuse = [](std::string_view found, std::string_view expected) {
      return FieldError(absl::StatusCode::kInvalidArgument, "part", found, expected);
    };
    if ((upload_ == nullptr) != message_.has_start()) {
      return upload_ == nullptr ? refuse("another part first", "start")
                                : refuse("start again", "file, data or end");
    }
    switch (message_.part_case()) {
      case v1::UploadRequest::kStart: {
        if (message_.start().target_case() == v1::UploadStart::TARGET_NOT_SET) {
          return FieldError(absl::StatusCode::kInvalidArgument, "start.target", "none",
                            "model or corpus");
        }
        NIBBLE_ASSIGN_OR_RETURN(upload_, store_.Open(SpecOf(message_.start())));
        return absl::OkStatus();
      }
      case v1::UploadRequest::kFile:
        in_file_ = true;
        return upload_->StartFile(message_.file().path(), message_.file().offset());
      case v1::UploadRequest::kData:
        if (!in_file_) return refuse("data", "file before it");
        if (message_.data().size() > kLargestData) {
          return FieldError(absl::StatusCode::kInvalidArgument, "data",
                            StrCat(message_.data().size(), " bytes"),
                            StrCat("at most ", kLargestData));
        }
        return upload_->Append(message_.data());
      case v1::UploadRequest::kEnd:
        ended_ = true;
        return End(message_.end());
      case v1::UploadRequest::PART_NOT_SET:
        break;
    }
    return refuse("none", "one part");
  }

  absl::Status End(v1::UploadEnd end) {
    switch (end) {
      case v1::UPLOAD_END_COMMIT:
        NIBBLE_RETURN_IF_ERROR(upload_->Commit());
        response_->set_committed(true);
        response_->set_model_version(upload_->spec().corpus ? 0 : 1);
        return absl::OkStatus();
      case v1::UPLOAD_END_DISCARD:
        return upload_->Discard();
      default:
        return FieldError(absl::StatusCode::kInvalidArgument, "end", StrCat(end),
                          "UPLOAD_END_COMMIT or UPLOAD_END_DISCARD");
    }
  }

  absl::Status Describe() {
    if (upload_ == nullptr) {
      return FieldError(absl::StatusCode::kInvalidArgument, "part", "none", "start");
    }
    const std::vector<UploadProgress> progress = upload_->progress();
    for (size_t i = 0; i < progress.size(); ++i) {
      v1::UploadedFile& file = *response_->add_files();
      file.set_path(upload_->spec().files[i].path);
      file.set_received_bytes(progress[i].received);
      file.set_complete(progress[i].complete);
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> quota, store_.QuotaLeft());
    if (quota) response_->set_quota_left_bytes(*quota);
    return absl::OkStatus();
  }

  // The last thing: this may be gone afterwards.
  void Conclude(absl::Status status) {
    if (status.ok()) status = Describe();
    upload_.reset();  // another stream may take it up now
    Finish(timer_.Done(ToGrpcStatus(status)));
  }

  v1::UploadResponse* const response_;
  UploadStore& store_;
  RpcTimer timer_;
  TaskThread& tasks_;
  v1::UploadRequest message_;
  std::unique_ptr<Upload> upload_;
  bool in_file_ = false;
  bool ended_ = false;
};

}  // namespace

grpc::ServerReadReactor<v1::UploadRequest>* StartUpload(v1::UploadResponse* response,
                                                        UploadStore& store, Metrics& metrics,
                                                        TaskThread& tasks) {
  return new UploadStream(response, store, metrics, tasks);
}

}  // namespace nibble
