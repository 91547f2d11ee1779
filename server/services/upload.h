#pragma once

#include <grpcpp/support/server_callback.h>

#include "nibble/v1/model.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/transfer/upload_store.h"

namespace nibble {

// The reactor of one Upload stream; `tasks` writes and checks the files.
grpc::ServerReadReactor<v1::UploadRequest>* StartUpload(v1::UploadResponse* response,
                                                        UploadStore& store, Metrics& metrics,
                                                        TaskThread& tasks);

}  // namespace nibble
