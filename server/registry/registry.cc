#include "server/registry/registry.h"

#include <malloc.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {

Registry::Registry(Options options) : options_(std::move(options)) {}

Registry::~Registry() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  loader_.reset();  // those in line are told so
  absl::MutexLock lock(&mutex_);
  entries_.clear();
}

Registry::Key Registry::KeyFor(const std::string& name, std::optional<Compute> compute) const {
  if (compute) return {name, *compute};
  const auto f32 = entries_.find({name, Compute::kF32});
  const bool kept = f32 != entries_.end() && f32->second.kept != nullptr;
  return {name, kept ? Compute::kF32 : Compute::kBf16};
}

void Registry::Acquire(const std::string& name, std::optional<Compute> compute, Keep keep,
                       Acquired done) {
  if (const absl::Status found = FindModel(options_.root, "model", name).status(); !found.ok()) {
    return done(found);
  }
  Key key;
  {
    absl::MutexLock lock(&mutex_);
    key = KeyFor(name, compute);
  }
  absl::StatusOr<ModelHandle> handle = TakeOrWait(key, {keep, done});
  if (!handle.ok() || *handle != nullptr) done(std::move(handle));
}

absl::StatusOr<ModelHandle> Registry::TakeOrWait(const Key& key, const Waiter& waiter) {
  const auto refuse = [&](std::string_view found, std::string_view expected) {
    return FieldError(absl::StatusCode::kFailedPrecondition, "model",
                      StrCat("\"", key.first, "\", ", found), expected);
  };
  absl::MutexLock lock(&mutex_);
  if (waiter.keep == Keep::kStay) {
    const Compute other = key.second == Compute::kF32 ? Compute::kBf16 : Compute::kF32;
    const auto kept = entries_.find({key.first, other});
    if (kept != entries_.end() && kept->second.kept != nullptr) {
      return refuse("loaded with another compute", "the same, or none: unload it first");
    }
  }
  Entry& entry = entries_[key];
  if (!entry.unloading.empty()) return refuse("being unloaded", "one that is loaded or stored");
  if (ModelHandle handle = entry.used.lock(); handle != nullptr) {
    if (waiter.keep == Keep::kStay) entry.kept = handle;
    return handle;
  }
  entry.waiting.push_back(waiter);
  if (entry.waiting.size() == 1) loader_->Run([this, key] { LoadFor(key); });
  return nullptr;
}

void Registry::LoadFor(const Key& key) {
  absl::StatusOr<ModelHandle> loaded = Load(key);
  std::vector<Waiter> waiting;
  {
    absl::MutexLock lock(&mutex_);
    Entry& entry = entries_[key];
    waiting = std::exchange(entry.waiting, {});
    entry.failure = loaded.status();
    if (loaded.ok()) {
      entry.loaded_at = absl::Now();
      entry.used = *loaded;
      const auto stays = [](const Waiter& waiter) { return waiter.keep == Keep::kStay; };
      if (std::ranges::any_of(waiting, stays)) entry.kept = *loaded;
    }
  }
  // The last takes this function's own handle: once answered, only the callers hold the model.
  const Waiter last = std::move(waiting.back());
  waiting.pop_back();
  for (const Waiter& waiter : waiting) waiter.done(loaded);
  last.done(std::move(loaded));
}

absl::StatusOr<ModelHandle> Registry::Load(const Key& key) {
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::UnavailableError("the server is stopping");
  }
  const auto& [name, compute] = key;
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(options_.root, "model", name));
  auto model = std::make_unique<LoadedModel>();
  model->name = name;
  model->compute = compute;
  NIBBLE_ASSIGN_OR_RETURN(model->config, LoadModelConfig(folder));
  NIBBLE_ASSIGN_OR_RETURN(model->tokenizer, LoadTokenizer(folder, "model"));
  RunnerOptions runner_options = options_.runner;
  runner_options.compute = compute;
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<ModelRunner> runner,
                          options_.make_runner(folder, runner_options));
  model->engine = Engine::Create(std::move(runner), {});
  return ModelHandle(model.release(), [this, key](const LoadedModel* last) {
    reaper_.Run([this, key, last] { Reap(key, last); });
  });
}

void Registry::Reap(const Key& key, const LoadedModel* last) {
  delete last;
  malloc_trim(0);  // or the allocator keeps what the weights held
  std::vector<Unloaded> unloading;
  {
    absl::MutexLock lock(&mutex_);
    const auto entry = entries_.find(key);
    // Another may have been loaded since: its own end counts.
    if (entry == entries_.end() || !entry->second.used.expired()) return;
    unloading = std::exchange(entry->second.unloading, {});
  }
  for (const Unloaded& done : unloading) done(absl::OkStatus());
}

void Registry::Unload(const std::string& name, Unloaded done) {
  if (const absl::Status found = FindModel(options_.root, "name", name).status(); !found.ok()) {
    return done(found);
  }
  ModelHandle released;  // outside the lock: it may be the last
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [key, entry] : entries_) {
      const bool kept = entry.kept != nullptr;
      if (key.first != name || (!kept && entry.unloading.empty())) continue;
      entry.unloading.push_back(std::move(done));
      released = std::exchange(entry.kept, nullptr);
      return;
    }
  }
  done(absl::OkStatus());
}

absl::Status Registry::Delete(const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(options_.root, "name", name));
  absl::MutexLock lock(&mutex_);
  for (const auto& [key, entry] : entries_) {
    const bool idle = entry.waiting.empty() && entry.unloading.empty() && entry.used.expired();
    if (key.first == name && !idle) {
      return FieldError(absl::StatusCode::kFailedPrecondition, "name",
                        StrCat("\"", name, "\", loaded"), "a model that is not loaded or in use");
    }
  }
  return RemoveFolder(folder);
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Registry::FindTokenizer(
    const std::string& name) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path folder,
                          FindModel(options_.root, "model", name));
  for (const ModelHandle& model : Loaded()) {
    if (model->name == name) return model->tokenizer;
  }
  return LoadTokenizer(folder, "model");
}

ModelStatus Registry::StatusOf(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  ModelStatus status;
  for (const auto& [key, entry] : entries_) {
    if (key.first != name) continue;
    const ModelHandle handle = entry.used.lock();
    if (!entry.waiting.empty()) {
      status.state = ModelState::kLoading;
      status.compute = key.second;
    } else if (!entry.unloading.empty()) {
      status.state = ModelState::kUnloading;
    } else if (handle != nullptr) {
      status.state = ModelState::kLoaded;
      status.loaded_at = entry.loaded_at;
      status.compute = key.second;
    } else if (!entry.failure.ok() && status.state == ModelState::kStored) {
      status.state = ModelState::kLoadFailed;
      status.failure = entry.failure;
    }
    if (handle == nullptr) continue;
    const ModelRunner& runner = handle->engine->runner();
    status.memory_bytes += runner.weight_bytes() + runner.kv_pool().bytes;
    status.kv_cache_bytes += runner.kv_pool().bytes;
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
