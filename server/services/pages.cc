#include "server/services/pages.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/names.h"

namespace nibble {
namespace {

constexpr int kDefaultPage = 50;
constexpr int kLargestPage = 1000;
constexpr char kTokenMark = '>';

}  // namespace

absl::StatusOr<int> PageSize(int asked) {
  if (asked < 0) {
    return FieldError(absl::StatusCode::kInvalidArgument, "page.size", StrCat(asked), "0 or more");
  }
  return asked == 0 ? kDefaultPage : std::min(asked, kLargestPage);
}

absl::StatusOr<NamePage> ParsePage(const v1::Page& page) {
  NamePage parsed;
  NIBBLE_ASSIGN_OR_RETURN(parsed.size, PageSize(page.size()));
  if (page.token().empty()) return parsed;
  parsed.after = page.token().substr(1);
  if (page.token()[0] == kTokenMark && CheckName("page.token", parsed.after).ok()) return parsed;
  return FieldError(absl::StatusCode::kInvalidArgument, "page.token", "another text",
                    "a next_page_token of an earlier list");
}

std::string PageToken(const std::string& last_name) { return kTokenMark + last_name; }

}  // namespace nibble
