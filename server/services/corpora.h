// Corpora of the data root, listed and removed.
#pragma once

#include "absl/status/status.h"
#include "nibble/v1/model.pb.h"
#include "server/jobs/job_store.h"
#include "server/ops/names.h"

namespace nibble {

absl::Status ListCorpora(const DataRoot& root, const v1::ListCorporaRequest& request,
                         v1::ListCorporaResponse& response);
// FAILED_PRECONDITION while an unfinished job reads it.
absl::Status DeleteCorpus(const DataRoot& root, JobStore& jobs, const std::string& name);

}  // namespace nibble
