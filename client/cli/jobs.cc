#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cli/watch.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

std::string StateName(v1::JobState state) {
  return ShortName(v1::JobState_Name(state), "JOB_STATE_");
}

void ShowEvent(const v1::JobEvent& event, Progress& progress) {
  if (!event.message().empty()) {
    progress.Note(StrCat(StateName(event.state()), ": ", event.message()));
  }
  if (event.has_progress() && event.progress().layers() > 0) {
    progress.Show(event.progress().layer(), event.progress().layers(), Describe(event.progress()));
  }
}

void PrintSummary(const v1::JobSummary& summary, std::ostream& out) {
  out << "bits per weight of the linears: " << Fixed(summary.linear_bits_per_weight(), 3)
      << "\nbits per weight of the model: " << Fixed(summary.model_bits_per_weight(), 3)
      << "\nsize: " << HumanBytes(summary.artifact_bytes()) << " of "
      << HumanBytes(summary.source_bytes()) << "\n";
  if (summary.has_relative_error()) {
    out << "mean relative output error: " << Fixed(summary.relative_error(), 6) << "\n";
  }
  out << "seconds: " << Fixed(summary.seconds(), 1) << std::endl;
}

absl::Status List(Client& client, const Context& context, v1::ListJobsRequest request) {
  std::vector<std::vector<std::string>> rows = {{"ID", "STATE", "LAYER", "MODEL", "OUTPUT"}};
  do {
    NIBBLE_ASSIGN_OR_RETURN(const auto response, client.ListJobs(request));
    for (const v1::Job& job : response.jobs()) {
      if (context.json) NIBBLE_RETURN_IF_ERROR(PrintJson(job, context.terminal.out));
      rows.push_back({job.id(), StateName(job.state()),
                      StrCat(job.progress().layer(), "/", job.progress().layers()),
                      job.spec().model(), job.spec().output()});
    }
    request.mutable_page()->set_token(response.next_page_token());
  } while (!request.page().token().empty());
  if (!context.json) PrintTable(rows, context.terminal.out);
  return absl::OkStatus();
}

absl::Status Get(Client& client, const Context& context, const v1::GetJobRequest& request) {
  NIBBLE_ASSIGN_OR_RETURN(const v1::Job job, client.GetJob(request));
  return PrintJob(context, job);
}

absl::Status Cancel(Client& client, const Context& context, const std::string& id) {
  v1::CancelJobRequest request;
  request.set_job_id(id);
  NIBBLE_ASSIGN_OR_RETURN(const v1::Job job, client.CancelJob(request));
  return PrintJob(context, job);
}

absl::Status Delete(Client& client, const Context& context, const std::string& id) {
  v1::DeleteJobRequest request;
  request.set_job_id(id);
  NIBBLE_RETURN_IF_ERROR(client.DeleteJob(request));
  if (context.json) return PrintJson(v1::DeleteJobResponse(), context.terminal.out);
  context.terminal.out << "deleted " << id << std::endl;
  return absl::OkStatus();
}

// A command that takes one job's id.
void AddJobCommand(CLI::App& jobs, Context& context, const std::string& name,
                   const std::string& description,
                   absl::Status (*run)(Client&, const Context&, const std::string&)) {
  CLI::App* command =
      AddCommand(jobs, name, description, StrCat("  nibble jobs ", name, " JOB_ID"));
  auto id = std::make_shared<std::string>();
  command->add_option("job", *id, "The job's id")->required();
  command->callback([&context, id, run] {
    context.action = [&context, id, run](Client& client) { return run(client, context, *id); };
  });
}

void AddList(CLI::App& jobs, Context& context) {
  CLI::App* list = AddCommand(jobs, "list", "Jobs, newest first",
                              "  nibble jobs list\n  nibble jobs list --model smollm2 --json");
  auto request = std::make_shared<v1::ListJobsRequest>();
  list->add_option_function<std::string>(
      "--model", [request](const std::string& name) { request->set_model(name); },
      "Only jobs of this source model");
  list->callback([&context, request] {
    context.action = [&context, request](Client& client) {
      return List(client, context, *request);
    };
  });
}

void AddGet(CLI::App& jobs, Context& context) {
  CLI::App* get = AddCommand(jobs, "get", "One job",
                             "  nibble jobs get JOB_ID\n  nibble jobs get JOB_ID --layers --json");
  auto request = std::make_shared<v1::GetJobRequest>();
  get->add_option_function<std::string>(
         "job", [request](const std::string& id) { request->set_job_id(id); }, "The job's id")
      ->required();
  get->add_flag_callback(
      "--layers", [request] { request->set_include_layers(true); },
      "With --json: also the reports of its finished layers");
  get->callback([&context, request] {
    context.action = [&context, request](Client& client) { return Get(client, context, *request); };
  });
}

void AddWatch(CLI::App& jobs, Context& context) {
  CLI::App* watch =
      AddCommand(jobs, "watch", "A job's events up to its end; exit status 1 unless it succeeded",
                 "  nibble jobs watch JOB_ID\n  nibble jobs watch JOB_ID --after 12 --json");
  auto id = std::make_shared<std::string>();
  auto after = std::make_shared<int64_t>(0);
  watch->add_option("job", *id, "The job's id")->required();
  watch->add_option("--after", *after, "Only events after this sequence");
  watch->callback([&context, id, after] {
    context.action = [&context, id, after](Client& client) {
      return Watch(client, context, *id, *after);
    };
  });
}

}  // namespace

absl::Status PrintJob(const Context& context, const v1::Job& job) {
  std::ostream& out = context.terminal.out;
  if (context.json) return PrintJson(job, out);
  out << "job " << job.id() << "\n"
      << "state: " << StateName(job.state()) << "\n"
      << job.spec().model() << " -> " << job.spec().output() << ", attempt " << job.attempt()
      << "\n";
  if (!job.reason().empty()) out << "reason: " << job.reason() << "\n";
  if (job.has_progress() && job.progress().layers() > 0) out << Describe(job.progress()) << "\n";
  if (job.has_failure()) out << "failure: " << job.failure().message() << "\n";
  if (job.has_summary()) PrintSummary(job.summary(), out);
  out.flush();
  return absl::OkStatus();
}

absl::Status Watch(Client& client, const Context& context, const std::string& job_id,
                   int64_t after_sequence) {
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  request.set_after_sequence(after_sequence);
  v1::JobEvent last;
  absl::Status printed;
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(client.WatchJob(request, [&](const v1::JobEvent& event) {
      last = event;
      if (context.json) {
        printed = PrintJson(event, context.terminal.out);
      } else {
        ShowEvent(event, progress);
      }
      return printed.ok();
    }));
  }
  switch (last.state()) {
    case v1::JOB_STATE_SUCCEEDED:
      if (!context.json) PrintSummary(last.summary(), context.terminal.out);
      return absl::OkStatus();
    case v1::JOB_STATE_FAILED:
      return absl::UnknownError(StrCat("job ", job_id, " failed: ", last.failure().message()));
    case v1::JOB_STATE_CANCELLED:
      return absl::UnknownError(StrCat("job ", job_id, " was cancelled"));
    default:
      return absl::UnknownError(StrCat("job ", job_id, ": the watch ended in state ",
                                       StateName(last.state()), ", expected a final one"));
  }
}

void AddJobs(CLI::App& app, Context& context) {
  CLI::App* jobs = AddCommand(app, "jobs", "Quantization jobs",
                              "  nibble jobs list\n  nibble jobs submit --help");
  jobs->require_subcommand(1);
  AddSubmit(*jobs, context);
  AddEstimate(*jobs, context);
  AddList(*jobs, context);
  AddGet(*jobs, context);
  AddWatch(*jobs, context);
  AddJobCommand(*jobs, context, "cancel", "Stops a job; its partial output is removed", Cancel);
  AddJobCommand(*jobs, context, "delete", "Forgets a finished job; its artifact stays", Delete);
}

}  // namespace nibble
