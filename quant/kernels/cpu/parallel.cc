// Compiled with OpenMP.
#include "quant/kernels/cpu/parallel.h"

#include <immintrin.h>
#include <omp.h>
#include <unistd.h>

#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace nibble {
namespace {

constexpr int64_t kLineBytes = 64;

// What a helper fetches while it waits, of its share: as much as half of its cache holds.
int64_t FetchedBytes() {
  static const int64_t bytes = std::max<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE) / 2, 0);
  return bytes;
}

// The threads of one parallel region, of which thread 0 hands out the work.
class Team {
 public:
  int threads() const { return threads_; }
  // Before anything else, by thread 0.
  void set_threads(int threads) { threads_ = threads; }

  void Run(const std::function<void(int)>& work) {
    Publish(&work);
    work(0);
    for (Patience patience; working_.load(std::memory_order_acquire) > 0;) patience.Wait();
  }
  // Lets the helpers go.
  void End() { Publish(nullptr); }

  void Expect(absl::Span<const absl::Span<const uint8_t>> ranges) {
    const std::lock_guard lock(mutex_);
    expected_.assign(ranges.begin(), ranges.end());
    expectation_.fetch_add(1, std::memory_order_release);
  }

  // What a helper does until End.
  void Help(int thread) {
    Fetcher fetcher;
    for (int64_t piece = 1;; ++piece) {
      for (Patience patience; piece_.load(std::memory_order_acquire) < piece;) {
        if (!Fetch(thread, fetcher)) patience.Wait();
      }
      if (work_ == nullptr) return;
      (*work_)(thread);
      working_.fetch_sub(1, std::memory_order_release);
    }
  }

 private:
  // Waits by turns: soon what it waits for comes, else the machine has more threads than cores.
  class Patience {
   public:
    void Wait() {
      constexpr int kSpins = 4000;
      if (++spins_ < kSpins) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }

   private:
    int spins_ = 0;
  };

  // How far a helper has come with what is expected.
  struct Fetcher {
    int64_t expectation = 0;
    std::vector<absl::Span<const uint8_t>> left;
  };

  void Publish(const std::function<void(int)>* work) {
    work_ = work;
    working_.store(threads_ - 1, std::memory_order_relaxed);
    piece_.fetch_add(1, std::memory_order_release);
  }

  // What a helper fetches: its own share, then its part of thread 0's, which waits for nothing.
  std::vector<absl::Span<const uint8_t>> PartsOf(int thread) {
    const std::lock_guard lock(mutex_);
    int64_t total = 0;
    for (const auto& range : expected_) total += static_cast<int64_t>(range.size());
    const int64_t share = total / threads_;
    const int64_t own = std::min(share, FetchedBytes());
    const int64_t part = std::min(share / (threads_ - 1), FetchedBytes() - own);
    std::vector<absl::Span<const uint8_t>> parts;
    Append(total * thread / threads_, own, parts);
    Append(share * (thread - 1) / (threads_ - 1), part, parts);
    return parts;
  }
  // Those `left` bytes of what is expected that follow the first `skipped`.
  void Append(int64_t skipped, int64_t left, std::vector<absl::Span<const uint8_t>>& parts) const {
    for (const auto& range : expected_) {
      const int64_t begin = std::min<int64_t>(skipped, range.size());
      const auto taken = range.subspan(begin, left);
      skipped -= begin;
      left -= static_cast<int64_t>(taken.size());
      if (!taken.empty()) parts.push_back(taken);
    }
  }

  // Fetches a little; false when there is nothing left.
  bool Fetch(int thread, Fetcher& fetcher) {
    const int64_t expectation = expectation_.load(std::memory_order_acquire);
    if (fetcher.expectation != expectation) {
      fetcher.expectation = expectation;
      fetcher.left = PartsOf(thread);
    }
    if (fetcher.left.empty()) return false;
    constexpr int64_t kLines = 4;
    absl::Span<const uint8_t>& range = fetcher.left.front();
    for (int64_t line = 0; line < kLines; ++line) {
      __builtin_prefetch(range.data() + line * kLineBytes);
    }
    range.remove_prefix(std::min<size_t>(kLines * kLineBytes, range.size()));
    if (range.empty()) fetcher.left.erase(fetcher.left.begin());
    return true;
  }

  int threads_ = 1;
  std::atomic<int64_t> piece_ = 0;  // pieces of work so far
  const std::function<void(int)>* work_ = nullptr;
  alignas(kLineBytes) std::atomic<int> working_ = 0;  // helpers that have not ended the piece

  std::mutex mutex_;
  std::vector<absl::Span<const uint8_t>> expected_;
  std::atomic<int64_t> expectation_ = 0;  // how often Expect was called
};

// Of thread 0, between pieces.
thread_local Team* team = nullptr;

}  // namespace

int ThreadCount() {
  if (team != nullptr) return team->threads();
  return omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
}

void RunOnThreads(const std::function<void(int)>& work) {
  if (Team* const own = std::exchange(team, nullptr); own != nullptr) {
    own->Run(work);
    team = own;
    return;
  }
#pragma omp parallel default(none) shared(work)
  work(omp_get_thread_num());
}

void WithThreads(const std::function<void()>& work) {
  const int threads = ThreadCount();
  if (threads == 1 || team != nullptr) return work();
  Team own;
  std::exception_ptr error;
#pragma omp parallel num_threads(threads) default(none) shared(own, error, work)
  {
    if (omp_get_thread_num() > 0) {
      own.Help(omp_get_thread_num());
    } else {
      own.set_threads(omp_get_num_threads());
      team = &own;
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
      team = nullptr;
      own.End();
    }
  }
  if (error) std::rethrow_exception(error);
}

void ExpectReads(absl::Span<const absl::Span<const uint8_t>> ranges) {
  if (team != nullptr) team->Expect(ranges);
}

void EndThreads() { omp_pause_resource(omp_pause_soft, omp_get_initial_device()); }

}  // namespace nibble
