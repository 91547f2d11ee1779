#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "quant/pipeline/estimate.h"
#include "server/jobs/job_notifier.h"
#include "server/jobs/job_store.h"
#include "server/ops/metrics.h"
#include "server/ops/names.h"
#include "server/ops/resources.h"
#include "server/ops/task_thread.h"

namespace nibble {

// Thread-safe; everything given outlives it.
class QuantizationService : public v1::QuantizationService::CallbackService {
 public:
  struct Options {
    DataRoot root;
    std::vector<Place> places;                             // where workers run jobs
    std::function<absl::StatusOr<Resources>()> resources;  // that a worker has
    std::function<void()> wake_worker = [] {};             // a job was submitted or cancelled
  };
  // `names` is held while a name is checked and taken.
  QuantizationService(Options options, JobStore& store, absl::Mutex& names, JobNotifier& notifier,
                      Metrics& metrics);

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context,
                                      const v1::SubmitJobRequest* request,
                                      v1::Job* response) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context,
                                   const v1::GetJobRequest* request, v1::Job* response) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context,
                                     const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override;
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context,
                                      const v1::CancelJobRequest* request,
                                      v1::Job* response) override;
  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* context,
                                      const v1::DeleteJobRequest* request,
                                      v1::DeleteJobResponse* response) override;
  grpc::ServerUnaryReactor* EstimateJob(grpc::CallbackServerContext* context,
                                        const v1::EstimateJobRequest* request,
                                        v1::JobEstimate* response) override;

 private:
  // A spec that may be queued, its defaults filled in, and what it needs in the first place where
  // it fits, if anywhere.
  struct CheckedJob {
    v1::JobSpec spec;
    QuantizeEstimate estimate;
    absl::Status fits;
    std::string device;  // as of NewJob
  };
  absl::StatusOr<CheckedJob> Check(const v1::JobSpec& spec) const;
  absl::StatusOr<Job> Submit(const v1::SubmitJobRequest& request);
  absl::StatusOr<v1::JobEstimate> Estimate(const v1::EstimateJobRequest& request) const;
  // Unless another request has taken the output or removed the model meanwhile.
  absl::StatusOr<JobStore::Submitted> Store(const NewJob& submitted) ABSL_LOCKS_EXCLUDED(names_);
  absl::StatusOr<Job> Cancel(const std::string& id) ABSL_LOCKS_EXCLUDED(names_);
  absl::Status Get(const v1::GetJobRequest& request, v1::Job& response);
  absl::Status List(const v1::ListJobsRequest& request, v1::ListJobsResponse& response);

  const Options options_;
  JobStore& store_;
  absl::Mutex& names_;
  JobNotifier& notifier_;
  Metrics& metrics_;
  TaskThread submissions_;  // checks read and tokenize the corpus: seconds, not for an RPC thread
};

}  // namespace nibble
