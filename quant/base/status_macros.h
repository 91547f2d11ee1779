// Early return of absl::Status errors.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns the status of `expr` from the calling function unless it is OK.
#define NIBBLE_RETURN_IF_ERROR(expr)                                                    \
  do {                                                                                  \
    if (absl::Status nibble_status = (expr); !nibble_status.ok()) return nibble_status; \
  } while (false)

// Assigns the value of a StatusOr to `lhs` (which may declare a variable), or returns its status.
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expr) \
  NIBBLE_ASSIGN_OR_RETURN_IMPL(NIBBLE_CONCAT(nibble_status_or_, __LINE__), lhs, expr)

#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_IMPL(a, b)
#define NIBBLE_CONCAT_IMPL(a, b) a##b
#define NIBBLE_ASSIGN_OR_RETURN_IMPL(status_or, lhs, expr) \
  auto status_or = (expr);                                 \
  if (!status_or.ok()) return status_or.status();          \
  lhs = *std::move(status_or)
