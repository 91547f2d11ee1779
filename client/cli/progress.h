// Progress of a long call: a line that is redrawn on a terminal, plain lines elsewhere.
#pragma once

#include <string>

#include "client/cli/cli.h"
#include "client/cpp/transfer.h"
#include "nibble/v1/evaluation.pb.h"
#include "nibble/v1/quantization.pb.h"

namespace nibble {

class Progress {
 public:
  explicit Progress(Terminal terminal) : terminal_(terminal) {}
  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `total` and what there is to say about it. Elsewhere than on a terminal a line is
  // printed only when `done` differs from the last one's.
  void Show(int64_t done, int64_t total, const std::string& text);
  // A message of its own, above the bar.
  void Note(const std::string& text);
  // Leaves the bar as it stands.
  void Finish();

 private:
  Terminal terminal_;
  bool drawn_ = false;
  int64_t printed_ = -1;
};

// "quantizing  layer 3 of 30  error 0.00123  left 1:20".
std::string Describe(const v1::JobProgress& progress);
std::string Describe(const v1::EvaluatePerplexityResponse& response);
std::string Describe(const v1::ProfileActivationsResponse& response);
// A transfer, whole percents.
void Show(const TransferProgress& transfer, Progress& progress);

}  // namespace nibble
