#include "client/cli/progress.h"

#include <algorithm>
#include <cctype>

#include "client/cli/output.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr int64_t kBarCells = 30;
constexpr char kClearLine[] = "\r\033[K";

std::string Bar(int64_t done, int64_t total) {
  const int64_t full = total > 0 ? std::clamp<int64_t>(kBarCells * done / total, 0, kBarCells) : 0;
  return StrCat("[", std::string(full, '#'), std::string(kBarCells - full, '.'), "]");
}

// "  left 1:20", once something is done.
std::string Left(int64_t done, int64_t total, double seconds) {
  if (done == 0) return "";
  const double left = seconds / static_cast<double>(done) * static_cast<double>(total - done);
  return StrCat("  left ", HumanSeconds(left));
}

}  // namespace

void Progress::Show(int64_t done, int64_t total, const std::string& text) {
  if (terminal_.live) {
    terminal_.err << kClearLine << Bar(done, total) << " " << text << std::flush;
    drawn_ = true;
  } else if (done != printed_) {
    terminal_.err << text << std::endl;
    printed_ = done;
  }
}

void Progress::Note(const std::string& text) {
  if (drawn_) terminal_.err << kClearLine;
  drawn_ = false;
  terminal_.err << text << std::endl;
}

void Progress::Finish() {
  if (drawn_) terminal_.err << std::endl;
  drawn_ = false;
}

std::string Describe(const v1::JobProgress& progress) {
  std::string phase = ShortName(v1::JobPhase_Name(progress.phase()), "JOB_PHASE_");
  std::transform(phase.begin(), phase.end(), phase.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  std::string text = StrCat(phase, "  layer ", progress.layer(), " of ", progress.layers());
  if (progress.has_relative_error())
    text += StrCat("  error ", Fixed(progress.relative_error(), 5));
  if (progress.has_eta_seconds()) text += StrCat("  left ", HumanSeconds(progress.eta_seconds()));
  return text;
}

std::string Describe(const v1::EvaluatePerplexityResponse& response) {
  std::string text = StrCat("window ", response.windows_done(), " of ", response.windows_total());
  if (response.has_perplexity()) text += StrCat("  perplexity ", Fixed(response.perplexity(), 4));
  return text + Left(response.windows_done(), response.windows_total(), response.seconds());
}

std::string Describe(const v1::ProfileActivationsResponse& response) {
  return StrCat("layer ", response.layers_done(), " of ", response.layers_total(),
                Left(response.layers_done(), response.layers_total(), response.seconds()));
}

void Show(const TransferProgress& transfer, Progress& progress) {
  const int64_t percent = transfer.total > 0 ? 100 * transfer.done / transfer.total : 100;
  progress.Show(
      percent, 100,
      StrCat(transfer.file, "  ", HumanBytes(transfer.done), " of ", HumanBytes(transfer.total)));
}

}  // namespace nibble
