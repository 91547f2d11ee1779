#include "server/jobs/recovery.h"

#include <string>
#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {
namespace {

absl::Status Remove(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (!error) return absl::OkStatus();
  return absl::InternalError(StrCat("can't remove ", folder.string(), ": ", error.message()));
}

}  // namespace

absl::StatusOr<std::vector<Job>> TakeBackJobs(JobStore& store,
                                              const std::filesystem::path& artifacts,
                                              std::string_view worker, Interruption interruption,
                                              std::string_view reason) {
  return store.TakeBack(worker, interruption, reason, [&](const Job& job) {
    // While it lives the output's name is the job's own: this was committed by a worker that died
    // before it could say so.
    const std::filesystem::path artifact = artifacts / job.submitted.output;
    NIBBLE_RETURN_IF_ERROR(Remove(artifact));
    return IsEnded(job.state) ? RemoveStaging(artifact) : absl::OkStatus();
  });
}

absl::Status RemoveOrphans(JobStore& store, const std::filesystem::path& artifacts) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(artifacts, error)) {
    const std::filesystem::path artifact = StagedArtifact(entry.path());
    if (artifact.empty()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string job, store.LiveJobOf(artifact.filename().string()));
    if (job.empty()) NIBBLE_RETURN_IF_ERROR(RemoveStaging(artifact));
  }
  if (!error) return absl::OkStatus();
  return absl::InternalError(StrCat("can't read ", artifacts.string(), ": ", error.message()));
}

}  // namespace nibble
