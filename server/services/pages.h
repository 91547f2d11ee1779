// Pages of a list in the order of names. A token tells the last name of the page before.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nibble/v1/common.pb.h"

namespace nibble {

struct NamePage {
  int size = 0;
  std::string after;  // empty: from the start
};

// INVALID_ARGUMENT for a negative size or a token that PageToken has not made.
absl::StatusOr<NamePage> ParsePage(const v1::Page& page);
std::string PageToken(const std::string& last_name);

// Entries of a page that asks for `asked`: 50 for 0, at most 1000. INVALID_ARGUMENT when negative.
absl::StatusOr<int> PageSize(int asked);

}  // namespace nibble
