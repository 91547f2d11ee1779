#include "server/jobs/job_store.h"

#include <cstdio>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr int kBusyMs = 10'000;

constexpr char kVersion1[] = R"sql(
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  request_id TEXT UNIQUE,
  request BLOB NOT NULL,
  spec BLOB NOT NULL,
  model TEXT NOT NULL,
  output TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  lost INTEGER NOT NULL,
  progress TEXT NOT NULL,
  error_code INTEGER NOT NULL,
  error_message TEXT NOT NULL,
  summary BLOB NOT NULL,
  created_us INTEGER NOT NULL,
  started_us INTEGER NOT NULL,
  ended_us INTEGER NOT NULL,
  heartbeat_us INTEGER NOT NULL,
  worker TEXT NOT NULL,
  reason TEXT NOT NULL,
  last_sequence INTEGER NOT NULL
);
CREATE UNIQUE INDEX live_outputs ON jobs (output) WHERE state IN (1, 2, 3);
CREATE INDEX queue ON jobs (state, priority, number);
CREATE TABLE labels (
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (job, key)
) WITHOUT ROWID;
CREATE TABLE events (
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  time_us INTEGER NOT NULL,
  state INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  message TEXT NOT NULL,
  progress TEXT NOT NULL,
  layer BLOB NOT NULL,
  PRIMARY KEY (job, sequence)
) WITHOUT ROWID;
)sql";
constexpr char kVersion2[] = "ALTER TABLE jobs ADD COLUMN device TEXT NOT NULL DEFAULT ''";

// The n-th makes a database of version n - 1 one of version n.
constexpr const char* kMigrations[] = {kVersion1, kVersion2};
constexpr int64_t kSchemaVersion = std::size(kMigrations);

constexpr char kJobColumns[] =
    "number, id, request_id, spec, model, output, priority, state, attempt, lost, progress, "
    "error_code, error_message, summary, created_us, started_us, ended_us, heartbeat_us, worker, "
    "reason, last_sequence, request, device";

// 0 stands for "not yet".
int64_t Micros(const std::optional<absl::Time>& time) {
  return time.has_value() ? absl::ToUnixMicros(*time) : 0;
}
std::optional<absl::Time> FromMicros(int64_t micros) {
  return micros == 0 ? std::nullopt : std::optional(absl::FromUnixMicros(micros));
}

constexpr double kUnknown = -1;

std::string ProgressText(const JobProgress& progress) {
  return absl::StrFormat("%d %d %d %.17g %.17g %.17g", progress.phase, progress.layer,
                         progress.layers, progress.mean_output_error, progress.seconds,
                         progress.seconds_left.value_or(kUnknown));
}

JobProgress ParseProgress(const std::string& text) {
  JobProgress progress;
  double left = kUnknown;
  std::sscanf(text.c_str(), "%d %ld %ld %lg %lg %lg", &progress.phase, &progress.layer,
              &progress.layers, &progress.mean_output_error, &progress.seconds, &left);
  if (left != kUnknown) progress.seconds_left = left;
  return progress;
}

// A row of kJobColumns, without its labels.
Job ReadJob(const SqliteStatement& row) {
  Job job;
  job.id = row.Text(1);
  job.submitted.request_id = row.Text(2);
  job.submitted.spec = row.Text(3);
  job.submitted.model = row.Text(4);
  job.submitted.output = row.Text(5);
  job.submitted.priority = static_cast<int32_t>(row.Int(6));
  job.state = static_cast<JobState>(row.Int(7));
  job.attempt = static_cast<int>(row.Int(8));
  job.lost = static_cast<int>(row.Int(9));
  job.progress = ParseProgress(row.Text(10));
  job.error = absl::Status(static_cast<absl::StatusCode>(row.Int(11)), row.Text(12));
  job.summary = row.Text(13);
  job.created = absl::FromUnixMicros(row.Int(14));
  job.started = FromMicros(row.Int(15));
  job.ended = FromMicros(row.Int(16));
  job.heartbeat = FromMicros(row.Int(17));
  job.worker = row.Text(18);
  job.reason = row.Text(19);
  job.last_sequence = row.Int(20);
  job.submitted.request = row.Text(21);
  job.submitted.device = row.Text(22);
  return job;
}

absl::Status ReadLabels(SqliteDatabase& database, Job& job) {
  SqliteStatement rows = database.Prepare("SELECT key, value FROM labels WHERE job = ?");
  rows.Bind(job.id);
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return absl::OkStatus();
    job.submitted.labels[rows.Text(0)] = rows.Text(1);
  }
}

std::string NewJobId() {
  std::random_device random;
  return absl::StrFormat("job-%08x%08x", random(), random());
}

std::string PageToken(int64_t number) { return absl::StrFormat("j%x", number); }

absl::StatusOr<int64_t> ParsePageToken(const std::string& token) {
  uint64_t number = 0;
  if (token.size() < 2 || token[0] != 'j' || !absl::SimpleHexAtoi(token.substr(1), &number) ||
      number > INT64_MAX) {
    return absl::InvalidArgumentError(
        StrCat("page_token: found \"", token, "\", expected a next_page_token of an earlier list"));
  }
  return static_cast<int64_t>(number);
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(SqliteDatabase database, SqliteDatabase::Open(path, kBusyMs));
  auto store = std::unique_ptr<JobStore>(new JobStore(std::move(database)));
  NIBBLE_RETURN_IF_ERROR(store->Migrate());
  return store;
}

absl::Status JobStore::Migrate() {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  int64_t version = 0;
  {
    SqliteStatement row = database_.Prepare("PRAGMA user_version");
    NIBBLE_RETURN_IF_ERROR(row.Run());
    version = row.Int(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(StrCat("job store: found schema version ", version,
                                                ", expected at most ", kSchemaVersion,
                                                "; a newer nibble wrote it"));
  }
  for (; version < kSchemaVersion; ++version) {
    NIBBLE_RETURN_IF_ERROR(database_.Execute(kMigrations[version]));
  }
  NIBBLE_RETURN_IF_ERROR(database_.Execute(StrCat("PRAGMA user_version = ", version)));
  return transaction.Commit();
}

absl::StatusOr<Job> JobStore::Find(std::string_view id) {
  SqliteStatement row =
      database_.Prepare(StrCat("SELECT ", kJobColumns, " FROM jobs WHERE id = ?"));
  row.Bind(id);
  NIBBLE_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) {
    return absl::NotFoundError(
        StrCat("job_id: found \"", id.substr(0, 64), "\", expected the id of a job"));
  }
  Job job = ReadJob(row);
  NIBBLE_RETURN_IF_ERROR(ReadLabels(database_, job));
  return job;
}

absl::StatusOr<std::optional<Job>> JobStore::FindRequestLocked(std::string_view request_id,
                                                               std::string_view request) {
  if (request_id.empty()) return std::nullopt;
  SqliteStatement row = database_.Prepare("SELECT id FROM jobs WHERE request_id = ?");
  row.Bind(request_id);
  NIBBLE_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(Job job, Find(row.Text(0)));
  if (job.submitted.request == request) return job;
  return absl::AlreadyExistsError(StrCat("request_id: found \"", request_id, "\", which made ",
                                         job.id, " from another spec, expected a new one"));
}

absl::StatusOr<std::optional<Job>> JobStore::FindRequest(std::string_view request_id,
                                                         std::string_view request) {
  absl::MutexLock lock(&mutex_);
  return FindRequestLocked(request_id, request);
}

absl::StatusOr<bool> JobStore::HasLiveOutput(std::string_view output) {
  SqliteStatement row =
      database_.Prepare("SELECT 1 FROM jobs WHERE output = ? AND state IN (1, 2, 3)");
  row.Bind(output);
  return row.Step();
}

absl::StatusOr<std::string> JobStore::FirstId(std::string_view sql, std::string_view name) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement row = database_.Prepare(std::string(sql));
  row.Bind(name);
  NIBBLE_ASSIGN_OR_RETURN(const bool found, row.Step());
  return found ? row.Text(0) : std::string();
}

absl::StatusOr<std::string> JobStore::LiveJobOf(std::string_view model) {
  return FirstId("SELECT id FROM jobs WHERE ?1 IN (model, output) AND state IN (1, 2, 3)", model);
}

absl::StatusOr<std::string> JobStore::MakerOf(std::string_view output) {
  return FirstId("SELECT id FROM jobs WHERE output = ? AND state = 4 ORDER BY number DESC", output);
}

absl::StatusOr<std::string> JobStore::Insert(const NewJob& submitted) {
  const std::string id = NewJobId();
  SqliteStatement insert = database_.Prepare(
      "INSERT INTO jobs (id, request_id, spec, model, output, priority, state, attempt, lost, "
      "progress, error_code, error_message, summary, created_us, started_us, ended_us, "
      "heartbeat_us, worker, reason, last_sequence, request, device) "
      "VALUES (?, ?, ?, ?, ?, ?, 1, 1, 0, '', 0, '', '', ?, 0, 0, 0, '', '', 0, ?, ?)");
  insert.Bind(id);
  submitted.request_id.empty() ? insert.BindNull() : insert.Bind(submitted.request_id);
  insert.BindBlob(submitted.spec).Bind(submitted.model).Bind(submitted.output);
  insert.Bind(int64_t{submitted.priority}).Bind(absl::ToUnixMicros(absl::Now()));
  insert.BindBlob(submitted.request).Bind(submitted.device);
  NIBBLE_RETURN_IF_ERROR(insert.Run());
  for (const auto& [key, value] : submitted.labels) {
    SqliteStatement label =
        database_.Prepare("INSERT INTO labels (job, key, value) VALUES (?, ?, ?)");
    NIBBLE_RETURN_IF_ERROR(label.Bind(id).Bind(key).Bind(value).Run());
  }
  return id;
}

absl::StatusOr<JobStore::Submitted> JobStore::Submit(const NewJob& submitted) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  NIBBLE_ASSIGN_OR_RETURN(std::optional<Job> known,
                          FindRequestLocked(submitted.request_id, submitted.request));
  if (known.has_value()) return Submitted{*std::move(known), false};
  NIBBLE_ASSIGN_OR_RETURN(const bool taken, HasLiveOutput(submitted.output));
  if (taken) {
    return absl::AlreadyExistsError(StrCat("output: found \"", submitted.output,
                                           "\", expected a name that no live job writes"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string id, Insert(submitted));
  NIBBLE_ASSIGN_OR_RETURN(Job job, Find(id));
  NIBBLE_RETURN_IF_ERROR(AddEvent(job, "", ""));
  NIBBLE_RETURN_IF_ERROR(Save(job));
  NIBBLE_RETURN_IF_ERROR(transaction.Commit());
  return Submitted{std::move(job), true};
}

absl::StatusOr<Job> JobStore::Get(std::string_view id) {
  absl::MutexLock lock(&mutex_);
  return Find(id);
}

absl::StatusOr<JobPage> JobStore::List(const JobFilter& filter, int page_size,
                                       const std::string& page_token) {
  int64_t before = INT64_MAX;
  if (!page_token.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(before, ParsePageToken(page_token));
  }
  std::string sql = StrCat("SELECT ", kJobColumns, " FROM jobs WHERE number < ?");
  std::string states;
  for (JobState state : filter.states) {
    states += StrCat(states.empty() ? "" : ", ", static_cast<int>(state));
  }
  if (!filter.model.empty()) sql += " AND model = ?";
  if (!states.empty()) sql += StrCat(" AND state IN (", states, ")");
  for (size_t i = 0; i < filter.labels.size(); ++i) {
    sql += " AND EXISTS (SELECT 1 FROM labels WHERE job = id AND key = ? AND value = ?)";
  }
  sql += " ORDER BY number DESC LIMIT ?";

  absl::MutexLock lock(&mutex_);
  SqliteStatement rows = database_.Prepare(sql);
  rows.Bind(before);
  if (!filter.model.empty()) rows.Bind(filter.model);
  for (const auto& [key, value] : filter.labels) rows.Bind(key).Bind(value);
  rows.Bind(int64_t{page_size} + 1);  // one more, to know whether there is a next page
  JobPage page;
  int64_t last = 0;
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return page;
    if (static_cast<int>(page.jobs.size()) == page_size) {
      page.next_page_token = PageToken(last);
      return page;
    }
    last = rows.Int(0);
    page.jobs.push_back(ReadJob(rows));
    NIBBLE_RETURN_IF_ERROR(ReadLabels(database_, page.jobs.back()));
  }
}

absl::StatusOr<std::vector<JobEvent>> JobStore::Events(std::string_view id, int64_t after,
                                                       int limit) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement rows = database_.Prepare(
      "SELECT sequence, time_us, state, attempt, message, progress, layer FROM events "
      "WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?");
  rows.Bind(id).Bind(after).Bind(int64_t{limit});
  std::vector<JobEvent> events;
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return events;
    events.push_back({.sequence = rows.Int(0),
                      .time = absl::FromUnixMicros(rows.Int(1)),
                      .state = static_cast<JobState>(rows.Int(2)),
                      .attempt = static_cast<int>(rows.Int(3)),
                      .message = rows.Text(4),
                      .progress = ParseProgress(rows.Text(5)),
                      .layer = rows.Text(6)});
  }
}

absl::StatusOr<std::vector<std::string>> JobStore::Layers(const Job& job) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement rows = database_.Prepare(
      "SELECT layer FROM events WHERE job = ? AND attempt = ? AND length(layer) > 0 "
      "ORDER BY sequence");
  rows.Bind(job.id).Bind(int64_t{job.attempt});
  std::vector<std::string> layers;
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return layers;
    layers.push_back(rows.Text(0));
  }
}

absl::StatusOr<Job> JobStore::Cancel(std::string_view id) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  NIBBLE_ASSIGN_OR_RETURN(Job job, Find(id));
  if (job.state == JobState::kCancelling || job.state == JobState::kCancelled) return job;
  if (IsEnded(job.state)) {
    return absl::FailedPreconditionError(
        StrCat("job ", id, ": found ", JobStateName(job.state), ", expected QUEUED or RUNNING"));
  }
  const JobState to = job.state == JobState::kQueued ? JobState::kCancelled : JobState::kCancelling;
  NIBBLE_RETURN_IF_ERROR(Move(job, to, "cancelled by a client"));
  NIBBLE_RETURN_IF_ERROR(transaction.Commit());
  return job;
}

absl::Status JobStore::Delete(std::string_view id) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  NIBBLE_ASSIGN_OR_RETURN(const Job job, Find(id));
  if (!IsEnded(job.state)) {
    return absl::FailedPreconditionError(StrCat("job ", id, ": found ", JobStateName(job.state),
                                                ", expected SUCCEEDED, FAILED or CANCELLED"));
  }
  NIBBLE_RETURN_IF_ERROR(database_.Prepare("DELETE FROM jobs WHERE id = ?").Bind(id).Run());
  return transaction.Commit();
}

absl::StatusOr<std::map<JobState, int64_t>> JobStore::CountByState() {
  absl::MutexLock lock(&mutex_);
  SqliteStatement rows = database_.Prepare("SELECT state, COUNT(*) FROM jobs GROUP BY state");
  std::map<JobState, int64_t> counts;
  for (int state = 1; state <= 6; ++state) counts[static_cast<JobState>(state)] = 0;
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return counts;
    counts[static_cast<JobState>(rows.Int(0))] = rows.Int(1);
  }
}

absl::Status JobStore::Move(Job& job, JobState to, std::string_view message) {
  if (!CanMove(job.state, to)) {
    return absl::InternalError(StrCat("job ", job.id, " can't go from ", JobStateName(job.state),
                                      " to ", JobStateName(to)));
  }
  job.state = to;
  const absl::Time now = absl::Now();
  if (to == JobState::kRunning) {
    job.started = now;
    job.heartbeat = now;
  }
  if (IsEnded(to)) job.ended = now;
  job.reason = to == JobState::kQueued ? std::string(message) : "";
  if (to == JobState::kQueued || IsEnded(to)) job.worker.clear();
  NIBBLE_RETURN_IF_ERROR(AddEvent(job, message, ""));
  return Save(job);
}

absl::Status JobStore::Save(const Job& job) {
  SqliteStatement update = database_.Prepare(
      "UPDATE jobs SET state = ?, attempt = ?, lost = ?, progress = ?, error_code = ?, "
      "error_message = ?, summary = ?, started_us = ?, ended_us = ?, heartbeat_us = ?, "
      "worker = ?, reason = ?, last_sequence = ? WHERE id = ?");
  update.Bind(static_cast<int64_t>(job.state)).Bind(int64_t{job.attempt}).Bind(int64_t{job.lost});
  update.Bind(ProgressText(job.progress)).Bind(static_cast<int64_t>(job.error.code()));
  update.Bind(std::string(job.error.message())).BindBlob(job.summary);
  update.Bind(Micros(job.started)).Bind(Micros(job.ended)).Bind(Micros(job.heartbeat));
  update.Bind(job.worker).Bind(job.reason).Bind(job.last_sequence);
  return update.Bind(job.id).Run();
}

absl::Status JobStore::AddEvent(Job& job, std::string_view message, const std::string& layer) {
  return database_
      .Prepare(
          "INSERT INTO events (job, sequence, time_us, state, attempt, message, progress, layer) "
          "VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
      .Bind(job.id)
      .Bind(++job.last_sequence)
      .Bind(absl::ToUnixMicros(absl::Now()))
      .Bind(static_cast<int64_t>(job.state))
      .Bind(int64_t{job.attempt})
      .Bind(message)
      .Bind(ProgressText(job.progress))
      .BindBlob(layer)
      .Run();
}

}  // namespace nibble
