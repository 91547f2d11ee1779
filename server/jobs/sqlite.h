// SQLite's C interface behind RAII and absl::Status.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// A prepared statement with its parameters bound in order. The first error sticks and comes out of
// Step. Not thread-safe.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* database, std::string_view sql);

  SqliteStatement& Bind(int64_t value);
  SqliteStatement& Bind(std::string_view value);
  SqliteStatement& BindBlob(std::string_view value);
  SqliteStatement& BindNull();

  // True while there is a row.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  // Columns of the current row, from 0.
  int64_t Int(int column) const;
  std::string Text(int column) const;  // text or blob; "" for NULL

 private:
  void Note(int code);

  sqlite3* const database_;
  std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement_{nullptr, sqlite3_finalize};
  int bound_ = 0;
  absl::Status status_;
};

// One connection. Not thread-safe.
class SqliteDatabase {
 public:
  // Opens or creates; WAL, foreign keys on, waits `busy_ms` for another process's write.
  static absl::StatusOr<SqliteDatabase> Open(const std::filesystem::path& path, int busy_ms);
  SqliteStatement Prepare(std::string_view sql) { return {database_.get(), sql}; }
  // One or more statements without parameters.
  absl::Status Execute(const std::string& sql);
  int64_t changes() const { return sqlite3_changes(database_.get()); }
  int64_t last_row() const { return sqlite3_last_insert_rowid(database_.get()); }

 private:
  SqliteDatabase() = default;
  std::unique_ptr<sqlite3, int (*)(sqlite3*)> database_{nullptr, sqlite3_close};
};

// A write transaction, taken at once; rolled back unless committed.
class SqliteTransaction {
 public:
  static absl::StatusOr<SqliteTransaction> Begin(SqliteDatabase& database);
  SqliteTransaction(SqliteTransaction&& other) noexcept;
  SqliteTransaction& operator=(SqliteTransaction&&) = delete;
  ~SqliteTransaction();
  absl::Status Commit();

 private:
  explicit SqliteTransaction(SqliteDatabase* database) : database_(database) {}
  SqliteDatabase* database_;  // null when over
};

}  // namespace nibble
