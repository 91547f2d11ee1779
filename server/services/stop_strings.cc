#include "server/services/stop_strings.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// The longest end of `text` that begins `stop`.
size_t Overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

std::string StopStrings::Push(std::string_view text) {
  if (matched()) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found < first) {
      first = found;
      match_ = stop;
    }
  }
  if (matched()) return held_.substr(0, first);
  size_t hold = 0;
  for (const std::string& stop : stops_) hold = std::max(hold, Overlap(held_, stop));
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::Finish() { return matched() ? std::string() : std::exchange(held_, {}); }

}  // namespace nibble
