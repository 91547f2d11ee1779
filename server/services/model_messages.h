// Models as the API shows them.
#pragma once

#include "absl/status/statusor.h"
#include "nibble/v1/model.pb.h"
#include "server/registry/model_folder.h"
#include "server/registry/registry.h"

namespace nibble {

// `report`: with every layer's report, of an artifact.
absl::StatusOr<v1::Model> ModelMessage(const ModelFolder& folder, const ModelStatus& status,
                                       bool report);

}  // namespace nibble
