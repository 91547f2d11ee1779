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
  std::optional<Compute> compute;  // of the one that is loading or loaded
  int64_t memory_bytes = 0;        // weights and KV cache
  int64_t kv_cache_bytes = 0;
};

// Whether a model loaded for a request stays loaded after it.
enum class Keep { kStay, kWhileUsed };

// Thread-safe. Outlives every handle. Models are loaded one after another on a thread of their own,
// so that requests for those already loaded go on.
class Registry {
 public:
  using RunnerMaker = std::function<absl::StatusOr<std::unique_ptr<ModelRunner>>(
      const std::filesystem::path&, const RunnerOptions&)>;
  struct Options {
    DataRoot root;
    RunnerOptions runner;  // of each loaded model; its compute is the request's
    RunnerMaker make_runner = MakeRunner;
  };
  explicit Registry(Options options);
  ~Registry();

  const DataRoot& root() const { return options_.root; }
  // Gives the model to `done`: at once when it is loaded, else from the loading thread once it is.
  // `compute` absent: whatever is kept, else bf16. NOT_FOUND, INVALID_ARGUMENT for a bad name,
  // FAILED_PRECONDITION for a model that is being unloaded or is kept with another compute (which
  // Keep::kWhileUsed may have beside it), or what loading says.
  using Acquired = std::function<void(absl::StatusOr<ModelHandle>)>;
  void Acquire(const std::string& name, std::optional<Compute> compute, Keep keep, Acquired done)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // No new requests; calls `done` when those in flight have ended and the memory is free: at once
  // for a model that is not loaded. NOT_FOUND, INVALID_ARGUMENT.
  using Unloaded = std::function<void(absl::Status)>;
  void Unload(const std::string& name, Unloaded done) ABSL_LOCKS_EXCLUDED(mutex_);
  // FAILED_PRECONDITION while it is loaded.
  absl::Status Delete(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of a model that need not be loaded. Errors as LoadTokenizer's and FindModel's.
  absl::StatusOr<std::shared_ptr<const Tokenizer>> FindTokenizer(const std::string& name) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  ModelStatus StatusOf(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<ModelHandle> Loaded() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Key = std::pair<std::string, Compute>;
  struct Waiter {
    Keep keep;
    Acquired done;
  };
  struct Entry {
    ModelHandle kept;
    std::weak_ptr<const LoadedModel> used;
    std::vector<Waiter> waiting;      // not empty: it is loading
    std::vector<Unloaded> unloading;  // not empty: its last requests end
    absl::Status failure;
    absl::Time loaded_at;
  };

  Key KeyFor(const std::string& name, std::optional<Compute> compute) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The handle, or none after `waiter` was put in line for the loading.
  absl::StatusOr<ModelHandle> TakeOrWait(const Key& key, const Waiter& waiter)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void LoadFor(const Key& key) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<ModelHandle> Load(const Key& key);
  void Reap(const Key& key, const LoadedModel* last) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  TaskThread reaper_;  // engines end here, never on their own thread
  std::optional<TaskThread> loader_{std::in_place};
};

}  // namespace nibble
