#pragma once

#include <grpcpp/support/server_callback.h>

#include "nibble/v1/quantization.pb.h"
#include "server/jobs/job_notifier.h"
#include "server/jobs/job_store.h"
#include "server/ops/metrics.h"

namespace nibble {

// The stream of WatchJob: reads events from the store when the notifier says that there are new
// ones, with one write in flight. Deletes itself.
grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(const v1::WatchJobRequest& request,
                                                 JobStore& store, JobNotifier& notifier,
                                                 Metrics& metrics);

}  // namespace nibble
