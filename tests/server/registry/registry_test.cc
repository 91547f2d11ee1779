#include "server/registry/registry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/server/engine/fake_runner.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

class RegistryTest : public testing::Test {
 protected:
  RegistryTest() : root_{folder_.path()} {
    EXPECT_TRUE(CreateFolders(root_).ok());
    EXPECT_TRUE(WriteTinyLlama({}, root_.models() / "tiny").ok());
    Registry::Options options{.root = root_};
    options.make_runner =
        [this](const std::filesystem::path&,
               const RunnerOptions&) -> absl::StatusOr<std::unique_ptr<ModelRunner>> {
      ++loads_;
      may_load_.WaitForNotification();
      if (fails_) return absl::DataLossError("a tensor is broken");
      return std::make_unique<FakeRunner>(KvPool{.blocks = 8, .block_size = 4});
    };
    registry_ = std::make_unique<Registry>(options);
  }
  ~RegistryTest() override {
    if (!may_load_.HasBeenNotified()) may_load_.Notify();
  }

  // Waits for the answer.
  absl::StatusOr<ModelHandle> Acquire(const std::string& name, std::optional<Compute> compute,
                                      Keep keep) {
    absl::StatusOr<ModelHandle> acquired;
    absl::Notification done;
    registry_->Acquire(name, compute, keep, [&](absl::StatusOr<ModelHandle> model) {
      acquired = std::move(model);
      done.Notify();
    });
    done.WaitForNotification();
    return acquired;
  }
  absl::Status Unload(const std::string& name) {
    absl::Status unloaded;
    absl::Notification done;
    registry_->Unload(name, [&](absl::Status status) {
      unloaded = std::move(status);
      done.Notify();
    });
    done.WaitForNotification();
    return unloaded;
  }

  TempFolder folder_;
  DataRoot root_;
  absl::Notification may_load_;
  std::atomic<int> loads_ = 0;
  std::atomic<bool> fails_ = false;
  std::unique_ptr<Registry> registry_;
};

TEST_F(RegistryTest, CallersThatComeTogetherLoadOnce) {
  std::vector<std::thread> threads;
  std::vector<ModelHandle> handles(4);
  for (ModelHandle& handle : handles) {
    threads.emplace_back([&] {
      auto acquired = Acquire("tiny", std::nullopt, Keep::kStay);
      ASSERT_TRUE(acquired.ok()) << acquired.status();
      handle = *acquired;
    });
  }
  may_load_.Notify();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(loads_, 1);
  for (const ModelHandle& handle : handles) EXPECT_EQ(handle, handles[0]);
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kLoaded);
}

TEST_F(RegistryTest, WhatIsKeptWhileUsedEndsWithItsLastUser) {
  may_load_.Notify();
  auto handle = Acquire("tiny", Compute::kF32, Keep::kWhileUsed);
  ASSERT_TRUE(handle.ok());
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kLoaded);
  EXPECT_FALSE(registry_->Delete("tiny").ok());
  *handle = nullptr;
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kStored);
  EXPECT_TRUE(registry_->Loaded().empty());
  EXPECT_TRUE(registry_->Delete("tiny").ok());
  EXPECT_FALSE(std::filesystem::exists(root_.models() / "tiny"));
  EXPECT_EQ(Acquire("tiny", std::nullopt, Keep::kStay).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(RegistryTest, UnloadWaitsForThoseInFlight) {
  may_load_.Notify();
  auto handle = Acquire("tiny", std::nullopt, Keep::kStay);
  ASSERT_TRUE(handle.ok());
  absl::Notification unloaded;
  registry_->Unload("tiny", [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    unloaded.Notify();
  });
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kUnloading);
  EXPECT_FALSE(unloaded.HasBeenNotified());
  EXPECT_EQ(Acquire("tiny", std::nullopt, Keep::kStay).status().code(),
            absl::StatusCode::kFailedPrecondition);
  handle->reset();
  unloaded.WaitForNotification();
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kStored);
  // Once more changes nothing; loading again works.
  EXPECT_TRUE(Unload("tiny").ok());
  EXPECT_TRUE(Acquire("tiny", std::nullopt, Keep::kStay).ok());
  EXPECT_EQ(loads_, 2);
}

TEST_F(RegistryTest, OneComputeIsKeptAndTheOtherMayBeUsedBeside) {
  may_load_.Notify();
  ASSERT_TRUE(Acquire("tiny", Compute::kF32, Keep::kStay).ok());
  // Unsaid, it is the one that is kept.
  EXPECT_EQ(Acquire("tiny", std::nullopt, Keep::kStay).value()->compute, Compute::kF32);
  EXPECT_EQ(Acquire("tiny", Compute::kBf16, Keep::kStay).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(loads_, 1);
  EXPECT_EQ(Acquire("tiny", Compute::kBf16, Keep::kWhileUsed).value()->compute, Compute::kBf16);
  EXPECT_EQ(loads_, 2);
}

TEST_F(RegistryTest, AFailedLoadIsToldAndMayBeTriedAgain) {
  may_load_.Notify();
  fails_ = true;
  EXPECT_EQ(Acquire("tiny", std::nullopt, Keep::kStay).status().message(), "a tensor is broken");
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kLoadFailed);
  EXPECT_EQ(registry_->StatusOf("tiny").failure.message(), "a tensor is broken");
  fails_ = false;
  EXPECT_TRUE(Acquire("tiny", std::nullopt, Keep::kStay).ok());
  EXPECT_EQ(registry_->StatusOf("tiny").state, ModelState::kLoaded);
}

TEST_F(RegistryTest, NamesThatLeaveTheRootAreRefused) {
  for (const char* name : {"../tiny", "/etc", "", ".hidden", "a/b"}) {
    EXPECT_EQ(Acquire(name, std::nullopt, Keep::kStay).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
    EXPECT_EQ(registry_->Delete(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

}  // namespace
}  // namespace nibble
