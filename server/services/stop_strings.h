// Holds back text that may turn into a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // Adds text and returns what can be shown: never any part of a stop string. After a match nothing
  // more is shown.
  std::string Push(std::string_view text);
  // The end without a match: what was held back.
  std::string Finish();
  bool matched() const { return !match_.empty(); }
  const std::string& match() const { return match_; }

 private:
  std::vector<std::string> stops_;  // none is empty
  std::string held_;
  std::string match_;
};

}  // namespace nibble
