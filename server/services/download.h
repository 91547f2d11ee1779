#pragma once

#include <grpcpp/support/server_callback.h>

#include "nibble/v1/model.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/names.h"
#include "server/ops/task_thread.h"

namespace nibble {

// The reactor of one Download stream; `tasks` reads the files.
grpc::ServerWriteReactor<v1::DownloadResponse>* StartDownload(const v1::DownloadRequest& request,
                                                              const DataRoot& root,
                                                              Metrics& metrics, TaskThread& tasks);

}  // namespace nibble
