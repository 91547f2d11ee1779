#include "server/registry/registry.h"

#include <system_error>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {

Registry::Registry(Options options) : options_(std::move(options)) {}

Registry::~Registry() {
  absl::MutexLock lock(&mutex_);
  entries_.clear();
}

Registry::Key Registry::KeyFor(const std::string& name, std::optional<Compute> compute) const {
  if (compute) return {name, *compute};
  const auto f32 = entries_.find({name, Compute::kF32});
  const bool only_f32 = f32 != entries_.end() && f32->second.kept != nullptr &&
                        !entries_.contains({name, Compute::kBf16});
  return {name, only_f32 ? Compute::kF32 : Compute::kBf16};
}

absl::StatusOr<ModelHandle> Registry::Acquire(const std::string& name,
                                              std::optional<Compute> compute, Keep keep) {
  NIBBLE_RETURN_IF_ERROR(FindModel(options_.root, "model", name).status());
  Key key;
  {
    absl::MutexLock lock(&mutex_);
    key = KeyFor(name, compute);
    Entry& entry = entries_[key];
    const auto settled = [&entry] { return !entry.loading && !entry.unloading; };
    mutex_.Await(absl::Condition(&settled));
    if (ModelHandle handle = entry.used.lock(); handle != nullptr) {
      if (keep == Keep::kStay) entry.kept = handle;
      return handle;
    }
    entry.loading = true;
  }
  const auto ended = std::make_shared<absl::Notification>();
  absl::StatusOr<ModelHandle> loaded = Load(key.first, key.second, ended);
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_[key];
  entry.loading = false;
  entry.failure = loaded.status();
  if (!loaded.ok()) return loaded.status();
  entry.loaded_at = absl::Now();
  entry.used = *loaded;
  entry.ended = ended;
  if (keep == Keep::kStay) entry.kept = *loaded;
  return loaded;
}

absl::StatusOr<ModelHandle> Registry::Load(const std::string& name, Compute compute,
                                           std::shared_ptr<absl::Notification> ended) {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(options_.root, "model", name));
  auto model = std::make_unique<LoadedModel>();
  model->name = name;
  model->compute = compute;
  NIBBLE_ASSIGN_OR_RETURN(model->config, LoadModelConfig(folder));
  NIBBLE_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(folder));
  LocalRunnerOptions runner_options;
  runner_options.compute = compute;
  runner_options.kv_bytes = options_.kv_bytes;
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<ModelRunner> runner,
                          options_.make_runner(folder, runner_options));
  model->engine = Engine::Create(std::move(runner), {});
  return ModelHandle(model.release(), [this, ended](const LoadedModel* last) {
    reaper_.Run([last, ended] {
      delete last;
      ended->Notify();
    });
  });
}

absl::Status Registry::Unload(const std::string& name) {
  NIBBLE_RETURN_IF_ERROR(FindModel(options_.root, "name", name).status());
  std::vector<ModelHandle> released;
  std::vector<std::shared_ptr<absl::Notification>> ends;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [key, entry] : entries_) {
      if (key.first != name || entry.kept == nullptr) continue;
      released.push_back(std::move(entry.kept));
      ends.push_back(entry.ended);
      entry.unloading = true;
    }
  }
  released.clear();
  for (const auto& ended : ends) ended->WaitForNotification();
  absl::MutexLock lock(&mutex_);
  for (auto& [key, entry] : entries_) {
    if (key.first == name) entry.unloading = false;
  }
  return absl::OkStatus();
}

absl::Status Registry::Delete(const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(options_.root, "name", name));
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, entry] : entries_) {
    if (key.first == name && (entry.loading || !entry.used.expired())) {
      return FieldError(absl::StatusCode::kFailedPrecondition, "name", StrCat(name, ", loaded"),
                        "a model that is not loaded or in use");
    }
  }
  // Out of sight first, so that a half-removed folder is never found under its name.
  const std::filesystem::path hidden = folder.parent_path() / StrCat(".deleted-", name);
  std::error_code error;
  std::filesystem::rename(folder, hidden, error);
  if (!error) std::filesystem::remove_all(hidden, error);
  if (error) return absl::InternalError(StrCat(folder.string(), ": ", error.message()));
  return absl::OkStatus();
}

ModelStatus Registry::StatusOf(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  ModelStatus status;
  for (const auto& [key, entry] : entries_) {
    if (key.first != name) continue;
    const ModelHandle handle = entry.used.lock();
    if (entry.loading) {
      status.state = ModelState::kLoading;
    } else if (handle != nullptr) {
      status.state = entry.unloading ? ModelState::kUnloading : ModelState::kLoaded;
      status.loaded_at = entry.loaded_at;
      status.compute = key.second;
      status.memory_bytes += handle->engine->runner().weight_bytes();
    } else if (!entry.failure.ok() && status.state == ModelState::kStored) {
      status.state = ModelState::kLoadFailed;
      status.failure = entry.failure;
    }
  }
  return status;
}

std::vector<ModelHandle> Registry::Loaded() const {
  absl::MutexLock lock(&mutex_);
  std::vector<ModelHandle> loaded;
  for (const auto& [key, entry] : entries_) {
    if (ModelHandle handle = entry.used.lock(); handle != nullptr) loaded.push_back(handle);
  }
  return loaded;
}

}  // namespace nibble
