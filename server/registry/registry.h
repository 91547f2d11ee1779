// Which models are loaded, and their life cycle.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "quant/base/compute.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "server/engine/engine.h"
#include "server/ops/names.h"
#include "server/ops/task_thread.h"
#include "server/registry/model_folder.h"

namespace nibble {

// Everything that serving a model needs. Handles to it are shared: the last one ends the engine.
struct LoadedModel {
  std::string name;
  Compute compute = Compute::kBf16;
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
};
using ModelHandle = std::shared_ptr<const LoadedModel>;

// The words of the API's ModelState.
enum class ModelState {
  kStored = 1,      // on disk
  kLoading = 2,     // being read; requests wait
  kLoaded = 3,      // requests are served
  kUnloading = 4,   // no new requests; those in flight end
  kLoadFailed = 5,  // `failure` says why; loading again may succeed
  kDeleting = 6,
};

struct ModelStatus {
  ModelState state = ModelState::kStored;
  absl::Status failure;
  std::optional<absl::Time> loaded_at;
  std::optional<Compute> compute;
  int64_t memory_bytes = 0;
};

// Whether a model loaded for a request stays loaded after it.
enum class Keep { kStay, kWhileUsed };

// Thread-safe. Outlives every handle.
class Registry {
 public:
  using MakeRunner = std::function<absl::StatusOr<std::unique_ptr<ModelRunner>>(
      const std::filesystem::path&, const LocalRunnerOptions&)>;
  struct Options {
    DataRoot root;
    int64_t kv_bytes = int64_t{1} << 30;  // KV cache of each loaded model
    MakeRunner make_runner = MakeLocalRunner;
  };
  explicit Registry(Options options);
  ~Registry();

  const DataRoot& root() const { return options_.root; }
  // Loads the model if it is not; blocks meanwhile, and while it is unloaded. `compute` absent:
  // whatever is loaded, else bf16. NOT_FOUND, INVALID_ARGUMENT for a bad name, or what loading
  // says.
  absl::StatusOr<ModelHandle> Acquire(const std::string& name, std::optional<Compute> compute,
                                      Keep keep) ABSL_LOCKS_EXCLUDED(mutex_);
  // No new requests; returns when those in flight have ended and the memory is free. A model that
  // is not loaded is left as it is.
  absl::Status Unload(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // FAILED_PRECONDITION while it is loaded.
  absl::Status Delete(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  ModelStatus StatusOf(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<ModelHandle> Loaded() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Key = std::pair<std::string, Compute>;
  struct Entry {
    ModelHandle kept;
    std::weak_ptr<const LoadedModel> used;
    bool loading = false;
    bool unloading = false;  // waits for `ended`
    absl::Status failure;
    absl::Time loaded_at;
    std::shared_ptr<absl::Notification> ended;  // of the last that was loaded
  };

  absl::StatusOr<ModelHandle> Load(const std::string& name, Compute compute,
                                   std::shared_ptr<absl::Notification> ended);
  Key KeyFor(const std::string& name, std::optional<Compute> compute) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  TaskThread reaper_;  // engines end here, never on their own thread
};

}  // namespace nibble
