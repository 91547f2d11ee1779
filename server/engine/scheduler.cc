#include "server/engine/scheduler.h"

#include <algorithm>

namespace nibble {
namespace {

// Of the pool's blocks, one in so many is kept for growth.
constexpr int64_t kReserveShare = 100;

}  // namespace

EngineStats& EngineStats::operator+=(const EngineStats& other) {
  running += other.running;
  waiting += other.waiting;
  kv_blocks_used += other.kv_blocks_used;
  kv_blocks_total += other.kv_blocks_total;
  prompt_tokens += other.prompt_tokens;
  generated_tokens += other.generated_tokens;
  cached_tokens += other.cached_tokens;
  preemptions += other.preemptions;
  steps += other.steps;
  return *this;
}

Scheduler::Scheduler(const KvPool& pool, const Options& options)
    : options_(options), block_size_(pool.block_size), pool_(pool.blocks) {}

int64_t Scheduler::BlocksOf(int64_t tokens) const {
  return (tokens + block_size_ - 1) / block_size_;
}

int64_t Scheduler::BlocksFor(const EngineRequest& spec) const {
  return BlocksOf(static_cast<int64_t>(spec.prompt.size()) + spec.max_tokens);
}

absl::Time Scheduler::NextDeadline() const {
  return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
}

EngineStats Scheduler::stats() const {
  EngineStats stats = counted_;
  stats.running = static_cast<int64_t>(running_.size());
  stats.waiting = waiting_count_;
  stats.kv_blocks_used = pool_.used();
  stats.kv_blocks_total = pool_.total();
  return stats;
}

// --- Requests come and go.

void Scheduler::Submit(RequestId id, EngineRequest spec, absl::Time now) {
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.id = id;
  request.spec = std::move(spec);
  request.choices_left = request.spec.n;
  for (int32_t choice = 0; choice < request.spec.n; ++choice) {
    Sequence& sequence = *request.choices.emplace_back(std::make_unique<Sequence>());
    sequence.id = next_sequence_++;
    sequence.request = &request;
    sequence.choice = choice;
    sequence.rank = now - request.spec.priority * options_.priority_head_start;
    sequence.tokens = request.spec.prompt;
    ++waiting_count_;
    if (choice == 0 || !options_.prefix_caching) Enqueue(sequence);
  }
  if (request.spec.deadline != absl::InfiniteFuture()) {
    deadlines_.emplace(request.spec.deadline, id);
  }
  requests_.emplace(id, std::move(owned));
}

void Scheduler::Enqueue(Sequence& sequence) {
  sequence.state = Sequence::State::kWaiting;
  waiting_.insert(&sequence);
}

void Scheduler::Cancel(RequestId id) {
  if (requests_.contains(id)) cancelled_.push_back(id);
}

void Scheduler::SetPaused(RequestId id, bool paused) {
  if (const auto found = requests_.find(id); found != requests_.end()) {
    found->second->paused = paused;
  }
}

void Scheduler::EndRequest(RequestId id, FinishReason reason, std::vector<Delivery>& deliveries) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  std::vector<Sequence*> left;
  for (const auto& sequence : found->second->choices) {
    if (sequence->state != Sequence::State::kEnded) left.push_back(sequence.get());
  }
  for (Sequence* sequence : left) {
    EngineEvent event;
    event.finish = reason;
    End(*sequence, std::move(event), deliveries);
  }
}

// The request goes with its last choice.
void Scheduler::End(Sequence& sequence, EngineEvent event, std::vector<Delivery>& deliveries) {
  LeaveQueue(sequence);
  pool_.Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.state = Sequence::State::kEnded;
  event.choice = sequence.choice;
  event.admitted = sequence.admitted;
  event.cached_prompt_tokens = sequence.cached_prompt_tokens;
  Request& request = *sequence.request;
  if (sequence.choice == 0) ReleaseHeldChoices(request);
  const bool last = --request.choices_left == 0;
  deliveries.push_back({request.id, std::move(event), last});
  if (!last) return;
  deadlines_.erase({request.spec.deadline, request.id});
  requests_.erase(request.id);
}

void Scheduler::LeaveQueue(Sequence& sequence) {
  if (sequence.state == Sequence::State::kRunning) {
    running_.erase(&sequence);
  } else {
    waiting_.erase(&sequence);
    --waiting_count_;
  }
}

// --- Who runs.

const StepInputs& Scheduler::Plan(absl::Time now, std::vector<Delivery>& deliveries) {
  for (const RequestId id : std::exchange(cancelled_, {})) {
    EndRequest(id, FinishReason::kCancelled, deliveries);
  }
  while (NextDeadline() <= now) {
    EndRequest(deadlines_.begin()->second, FinishReason::kDeadline, deliveries);
  }
  Admit(now);
  planned_.clear();
  inputs_.sequences.clear();
  int64_t budget = options_.max_step_tokens;
  PlanDecodes(budget);
  PlanPrefills(budget);
  return inputs_;
}

// In order, as long as the first one fits.
void Scheduler::Admit(absl::Time now) {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    Sequence& sequence = **next++;
    if (sequence.request->paused) continue;
    if (!TryAdmit(sequence, now)) return;
    // Preempted ones come behind it.
    next = waiting_.upper_bound(&sequence);
  }
}

// Takes the blocks of all its tokens so far, those of a known prefix from the cache.
bool Scheduler::TryAdmit(Sequence& sequence, absl::Time now) {
  const std::vector<BlockPool::Match> matches = FindPrefix(sequence);
  const auto count = static_cast<int64_t>(matches.size());
  for (const BlockPool::Match& match : matches) {
    pool_.Share(match.block);
    sequence.blocks.push_back(match.block);
  }
  const int64_t fresh = BlocksOf(sequence.size()) - count;
  if (!MakeRoom(sequence, fresh)) {
    pool_.Release(sequence.blocks);
    sequence.blocks.clear();
    return false;
  }
  pool_.Take(fresh, sequence.blocks);
  sequence.remembered_blocks = count;
  sequence.prefix = matches.empty() ? kEmptyPrefix : matches.back().prefix;
  sequence.computed = count * block_size_;
  counted_.cached_tokens += sequence.computed;
  if (sequence.admitted == absl::InfiniteFuture()) {
    sequence.admitted = now;
    sequence.cached_prompt_tokens = std::min(sequence.computed, sequence.request->prompt_size());
  }
  LeaveQueue(sequence);
  sequence.state = Sequence::State::kRunning;
  running_.insert(&sequence);
  return true;
}

// Whole blocks, short of the last token: its logits are wanted. Prompt tokens that are still to be
// scored must be computed.
std::vector<BlockPool::Match> Scheduler::FindPrefix(const Sequence& sequence) const {
  std::vector<BlockPool::Match> matches;
  const Request& request = *sequence.request;
  const bool scores = request.spec.score_prompt && sequence.choice == 0 &&
                      sequence.scored + 1 < request.prompt_size();
  if (!options_.prefix_caching || scores) return matches;
  PrefixId prefix = kEmptyPrefix;
  const absl::Span<const int32_t> tokens(sequence.tokens);
  for (int64_t begin = 0; begin + block_size_ < sequence.size(); begin += block_size_) {
    const auto match = pool_.Find(prefix, tokens.subspan(begin, block_size_));
    if (!match) break;
    matches.push_back(*match);
    prefix = match->prefix;
  }
  return matches;
}

// Those that must give way to `sequence`, the first to go first: the paused, then whoever stands
// behind it.
std::vector<Sequence*> Scheduler::Victims(const Sequence& sequence) const {
  std::vector<Sequence*> paused;
  std::vector<Sequence*> behind;
  for (auto other = running_.rbegin(); other != running_.rend(); ++other) {
    if (*other == &sequence) continue;
    if ((*other)->request->paused) {
      paused.push_back(*other);
    } else if (ByRank()(&sequence, *other)) {
      behind.push_back(*other);
    }
  }
  paused.insert(paused.end(), behind.begin(), behind.end());
  return paused;
}

// Blocks that nobody but `victims` holds.
int64_t Scheduler::BlocksFreedBy(const std::vector<Sequence*>& victims) const {
  absl::flat_hash_map<int32_t, int32_t> holders;
  for (const Sequence* victim : victims) {
    for (const int32_t block : victim->blocks) ++holders[block];
  }
  return std::ranges::count_if(
      holders, [&](const auto& held) { return pool_.holders(held.first) == held.second; });
}

// Makes `blocks` available, and a place among the running for one that waits, by preempting its
// victims, if that is enough. One that waits must also leave a reserve for the growth of those that
// stay, or it would soon be preempted again.
bool Scheduler::MakeRoom(const Sequence& sequence, int64_t blocks) {
  const bool waits = sequence.state == Sequence::State::kWaiting;
  const auto fits = [&](int64_t running, int64_t available) {
    if (!waits) return blocks <= available;
    const int64_t reserve = running == 0 ? 0 : pool_.total() / kReserveShare + 1;
    return running < options_.max_sequences && blocks + reserve <= available;
  };
  const auto running = static_cast<int64_t>(running_.size());
  if (fits(running, pool_.available())) return true;
  const std::vector<Sequence*> victims = Victims(sequence);
  if (!fits(running - static_cast<int64_t>(victims.size()),
            pool_.available() + BlocksFreedBy(victims))) {
    return false;
  }
  for (Sequence* victim : victims) {
    Preempt(*victim);
    if (fits(static_cast<int64_t>(running_.size()), pool_.available())) break;
  }
  return true;
}

void Scheduler::Preempt(Sequence& sequence) {
  running_.erase(&sequence);
  pool_.Release(sequence.blocks);
  sequence.blocks.clear();
  sequence.computed = 0;
  ++waiting_count_;
  ++counted_.preemptions;
  Enqueue(sequence);
}

void Scheduler::LoseCache() {
  while (!running_.empty()) Preempt(**running_.begin());
  pool_.ForgetAll();
}

// --- What they compute.

// Sequences that have one token to compute, before any prompt: a stream must not wait for others'
// prompts.
void Scheduler::PlanDecodes(int64_t& budget) {
  std::vector<Sequence*> decodes;
  for (Sequence* sequence : running_) {
    if (sequence->size() - sequence->computed == 1 && !sequence->request->paused) {
      decodes.push_back(sequence);
    }
  }
  for (Sequence* sequence : decodes) {
    if (sequence->state != Sequence::State::kRunning || budget == 0) continue;
    if (static_cast<int64_t>(sequence->blocks.size()) < BlocksOf(sequence->size())) {
      if (!MakeRoom(*sequence, 1)) continue;
      pool_.Take(1, sequence->blocks);
    }
    AddInput(*sequence, 1);
    --budget;
  }
}

void Scheduler::PlanPrefills(int64_t& budget) {
  for (Sequence* sequence : running_) {
    const int64_t left = sequence->size() - sequence->computed;
    if (left == 1 || sequence->request->paused || budget == 0) continue;
    const int64_t chunk = std::min(left, budget);
    AddInput(*sequence, chunk);
    budget -= chunk;
  }
}

void Scheduler::AddInput(Sequence& sequence, int64_t chunk) {
  const EngineRequest& spec = sequence.request->spec;
  const int64_t prompt = sequence.request->prompt_size();
  const int64_t end = sequence.computed + chunk;
  const bool whole = end == sequence.size();
  const auto begin = sequence.tokens.begin() + sequence.computed;
  SequenceInput& input = inputs_.sequences.emplace_back();
  input.sequence = sequence.id;
  input.tokens.assign(begin, begin + chunk);
  input.position = sequence.computed;
  input.blocks.assign(sequence.blocks.begin(), sequence.blocks.begin() + BlocksOf(end));
  input.sample = whole && spec.max_tokens > 0;
  input.sampling = spec.sampling;
  input.sampling.seed += static_cast<uint64_t>(sequence.choice);
  if (sequence.size() - prompt < spec.min_tokens) input.banned = spec.stop_tokens;
  if (spec.sampling.repetition_penalty != 1 || spec.sampling.presence_penalty != 0 ||
      spec.sampling.frequency_penalty != 0) {
    input.history = sequence.tokens;
    input.history_prompt = prompt;
  }
  input.top_logprobs = spec.top_logprobs;
  input.score_prompt = spec.score_prompt && sequence.choice == 0 && sequence.scored + 1 < prompt &&
                       sequence.computed < prompt;
  input.prompt_top_logprobs = spec.prompt_top_logprobs;
  if (!whole) input.score_next = sequence.tokens[end];
  planned_.push_back(&sequence);
}

// --- What came of it.

void Scheduler::Apply(absl::StatusOr<StepOutputs> outputs, std::vector<Delivery>& deliveries) {
  ++counted_.steps;
  for (size_t i = 0; i < planned_.size(); ++i) {
    Sequence& sequence = *planned_[i];
    if (outputs.ok()) {
      const auto chunk = static_cast<int64_t>(inputs_.sequences[i].tokens.size());
      ApplyOne(sequence, chunk, outputs->sequences[i], deliveries);
    } else {
      EngineEvent event;
      event.finish = FinishReason::kError;
      event.status = outputs.status();
      End(sequence, std::move(event), deliveries);
    }
  }
  planned_.clear();
}

void Scheduler::ApplyOne(Sequence& sequence, int64_t chunk, SequenceOutput& output,
                         std::vector<Delivery>& deliveries) {
  const Request& request = *sequence.request;
  const int64_t prompt = request.prompt_size();
  if (sequence.computed < prompt) counted_.prompt_tokens += chunk;
  const int64_t begin = sequence.computed;
  sequence.computed += chunk;
  RememberBlocks(sequence);
  if (sequence.choice == 0 && sequence.computed >= prompt) ReleaseHeldChoices(request);

  EngineEvent event;
  // Those of a chunk that is computed again have been told already.
  const int64_t told = std::min<int64_t>(std::max<int64_t>(sequence.scored - begin, 0),
                                         static_cast<int64_t>(output.prompt_logprobs.size()));
  output.prompt_logprobs.erase(output.prompt_logprobs.begin(),
                               output.prompt_logprobs.begin() + told);
  event.prompt_logprobs = std::move(output.prompt_logprobs);
  sequence.scored += static_cast<int64_t>(event.prompt_logprobs.size());
  if (output.token) {
    TakeToken(sequence, output, event);
  } else if (request.spec.max_tokens == 0 && sequence.computed == prompt) {
    event.finish = FinishReason::kLength;
  }
  if (event.finish != FinishReason::kNone) return End(sequence, std::move(event), deliveries);
  if (event.tokens.empty() && event.prompt_logprobs.empty()) return;
  event.choice = sequence.choice;
  event.admitted = sequence.admitted;
  event.cached_prompt_tokens = sequence.cached_prompt_tokens;
  deliveries.push_back({request.id, std::move(event), false});
}

void Scheduler::TakeToken(Sequence& sequence, SequenceOutput& output, EngineEvent& event) {
  const EngineRequest& spec = sequence.request->spec;
  const int32_t token = *output.token;
  if (std::ranges::find(spec.stop_tokens, token) != spec.stop_tokens.end()) {
    event.finish = FinishReason::kStop;
    event.stop_token = token;
    return;
  }
  ++counted_.generated_tokens;
  sequence.tokens.push_back(token);
  event.tokens.push_back(token);
  if (output.logprob) event.logprobs.push_back(*std::move(output.logprob));
  if (sequence.size() - sequence.request->prompt_size() == spec.max_tokens) {
    event.finish = FinishReason::kLength;
  }
}

void Scheduler::RememberBlocks(Sequence& sequence) {
  if (!options_.prefix_caching) return;
  const absl::Span<const int32_t> tokens(sequence.tokens);
  for (int64_t& index = sequence.remembered_blocks; (index + 1) * block_size_ <= sequence.computed;
       ++index) {
    sequence.prefix = pool_.Remember(sequence.blocks[index], sequence.prefix,
                                     tokens.subspan(index * block_size_, block_size_));
  }
}

// The prompt's full blocks are in the prefix cache now, or will never be.
void Scheduler::ReleaseHeldChoices(const Request& request) {
  for (const auto& sequence : request.choices) {
    if (sequence->state == Sequence::State::kHeld) Enqueue(*sequence);
  }
}

}  // namespace nibble
