#include "server/services/corpora.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "nibble/v1/quantization.pb.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/services/pages.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int kJobsAtOnce = 256;

// Lines that hold something.
int64_t CountTexts(const fs::path& file) {
  if (file.extension() == ".txt") return 1;
  std::ifstream stream(file, std::ios::binary);
  int64_t texts = 0;
  for (std::string line; std::getline(stream, line);) {
    texts += line.find_first_not_of(" \t\r") != std::string::npos;
  }
  return texts;
}

v1::Corpus CorpusMessage(const fs::path& file) {
  v1::Corpus corpus;
  corpus.set_name(file.filename().string());
  corpus.set_texts(CountTexts(file));
  std::error_code error;
  corpus.set_bytes(static_cast<int64_t>(fs::file_size(file, error)));
  const auto written = std::chrono::file_clock::to_sys(fs::last_write_time(file, error));
  corpus.mutable_created_at()->set_seconds(
      std::chrono::duration_cast<std::chrono::seconds>(written.time_since_epoch()).count());
  return corpus;
}

// An unfinished job that reads the corpus; empty when none does.
absl::StatusOr<std::string> LiveReader(JobStore& jobs, const std::string& corpus) {
  const JobFilter live = {.states = {JobState::kQueued, JobState::kRunning, JobState::kCancelling},
                          .labels = {},
                          .model = {}};
  std::string token;
  do {
    NIBBLE_ASSIGN_OR_RETURN(const JobPage page, jobs.List(live, kJobsAtOnce, token));
    for (const Job& job : page.jobs) {
      v1::JobSpec spec;
      if (spec.ParseFromString(job.submitted.spec) && spec.corpus().name() == corpus) return job.id;
    }
    token = page.next_page_token;
  } while (!token.empty());
  return std::string();
}

}  // namespace

absl::Status ListCorpora(const DataRoot& root, const v1::ListCorporaRequest& request,
                         v1::ListCorporaResponse& response) {
  NIBBLE_ASSIGN_OR_RETURN(const NamePage page, ParsePage(request.page()));
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(root.corpora(), error)) {
    std::string name = entry.path().filename().string();
    if (name > page.after && FindCorpus(root, "name", name).ok()) names.push_back(std::move(name));
  }
  if (error) return absl::InternalError(StrCat(root.corpora().string(), ": ", error.message()));
  std::ranges::sort(names);
  for (const std::string& name : names) {
    if (response.corpora_size() == page.size) {
      response.set_next_page_token(PageToken(response.corpora(page.size - 1).name()));
      break;
    }
    *response.add_corpora() = CorpusMessage(root.corpora() / name);
  }
  return absl::OkStatus();
}

absl::Status DeleteCorpus(const DataRoot& root, JobStore& jobs, const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const fs::path file, FindCorpus(root, "name", name));
  NIBBLE_ASSIGN_OR_RETURN(const std::string job, LiveReader(jobs, name));
  if (!job.empty()) {
    return FieldError(absl::StatusCode::kFailedPrecondition, "name",
                      StrCat("\"", name, "\", which ", job, " reads"),
                      "a corpus that no unfinished job reads");
  }
  std::error_code error;
  fs::remove(file, error);
  return error ? absl::InternalError(StrCat(file.string(), ": ", error.message()))
               : absl::OkStatus();
}

}  // namespace nibble
