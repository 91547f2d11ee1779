// nibble.v1's job messages as the numerical library's types, and back.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "quant/pipeline/pipeline.h"
#include "server/ops/names.h"

namespace nibble::v1 {
class CorpusRef;
class JobSpec;
class LayerReport;
}  // namespace nibble::v1

namespace nibble {

// What a worker needs to run a job.
struct JobPlan {
  QuantizeSpec spec;
  std::filesystem::path checkpoint;
  std::filesystem::path artifact;  // where the result will stand
};

// The corpus's file. INVALID_ARGUMENT for a bad name or range, NOT_FOUND.
absl::StatusOr<std::filesystem::path> FindCorpus(const v1::CorpusRef& corpus, const DataRoot& root);

// The spec with every default filled in. Errors as MakeJobPlan's, for what it has to read.
absl::StatusOr<v1::JobSpec> FillDefaults(const v1::JobSpec& spec, const DataRoot& root);

// From a spec with its defaults filled in. INVALID_ARGUMENT with the field for names and values
// that can't be, UNIMPLEMENTED for fields that are not served, NOT_FOUND for a model or corpus that
// is not there. Does not look at `artifact`.
absl::StatusOr<JobPlan> MakeJobPlan(const v1::JobSpec& spec, const DataRoot& root);

int PhaseNumber(Phase phase);  // of nibble.v1.JobPhase
v1::LayerReport LayerReportMessage(const LayerReport& report);

// Most memory of a worker.
struct PeakBytes {
  int64_t host = 0;
  int64_t device = 0;
};
std::string SerializeSummary(const QuantizeSummary& summary, const JobPlan& plan,
                             const PeakBytes& peak);

}  // namespace nibble
