// How fast one core turns text into tokens, and which ones: what it prints of a file, but for the
// speed, tests/bench/tokenizer_reference.py prints of the Python packages.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <iostream>

#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kMostBytes = size_t{1} << 30;
constexpr int kRepeats = 5;

struct Encoded {
  std::vector<int32_t> ids;
  double seconds = 0;  // of this one thread's processor time, the least of kRepeats
};

absl::StatusOr<std::vector<int32_t>> EncodeLines(const Tokenizer& tokenizer,
                                                 std::string_view text) {
  std::vector<int32_t> ids;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> line,
                            tokenizer.Encode(text.substr(0, end), SpecialTokens::kAdd));
    ids.insert(ids.end(), line.begin(), line.end());
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return ids;
}

absl::StatusOr<Encoded> Measure(const Tokenizer& tokenizer, std::string_view text, bool lines) {
  Encoded encoded;
  for (int i = 0; i < kRepeats; ++i) {
    const std::clock_t start = std::clock();
    NIBBLE_ASSIGN_OR_RETURN(encoded.ids, lines ? EncodeLines(tokenizer, text)
                                               : tokenizer.Encode(text, SpecialTokens::kAdd));
    const double took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    encoded.seconds = i == 0 ? took : std::min(encoded.seconds, took);
  }
  return encoded;
}

absl::Status PrintRow(const Tokenizer& tokenizer, const std::string& name, std::string_view text,
                      bool lines) {
  NIBBLE_ASSIGN_OR_RETURN(const Encoded encoded, Measure(tokenizer, text, lines));
  const std::string_view bytes(reinterpret_cast<const char*>(encoded.ids.data()),
                               encoded.ids.size() * sizeof(encoded.ids[0]));
  std::printf("%-24s %10zu bytes %9zu tokens  %.16s  %7.3f s %7.2f MB/s\n", name.c_str(),
              text.size(), encoded.ids.size(), Sha256(bytes).c_str(), encoded.seconds,
              static_cast<double>(text.size()) / 1e6 / encoded.seconds);
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status BenchFiles(const std::string& folder, const std::vector<std::string>& files,
                        bool lines) {
  NIBBLE_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(folder));
  for (const std::string& file : files) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMostBytes));
    NIBBLE_RETURN_IF_ERROR(
        PrintRow(*tokenizer, std::filesystem::path(file).filename().string(), text, lines));
  }
  return absl::OkStatus();
}

// Every tokenizer of the fixtures on a megabyte of their text.
absl::Status BenchFixtures(bool lines) {
  const std::filesystem::path fixtures = NIBBLE_FIXTURES;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                          ReadTextFile(fixtures / "texts" / "evaluation.txt", kMostBytes));
  std::string megabyte;
  while (megabyte.size() < 1'000'000) megabyte += text;
  megabyte.resize(1'000'000);
  for (const char* name : {"tokenizers/gpt2", "tokenizers/llama3", "tokenizers/smollm",
                           "sentencepiece/llama", "sentencepiece/unigram"}) {
    NIBBLE_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(fixtures / name));
    NIBBLE_RETURN_IF_ERROR(PrintRow(*tokenizer, name, megabyte, lines));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  CLI::App app(
      "Encodes files on one core: bytes, tokens, the first of their sha256, seconds.\n\n"
      "examples:\n  tokenizer_bench\n  tokenizer_bench models/opt-1.3b wiki.test.txt --lines");
  std::string folder;
  std::vector<std::string> files;
  bool lines = false;
  auto* folder_option = app.add_option("folder", folder, "A model; none: the fixtures' tokenizers");
  app.add_option("files", files, "Texts")->needs(folder_option);
  app.add_flag("--lines", lines, "Each line as a text of its own");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status =
      folder.empty() ? nibble::BenchFixtures(lines) : nibble::BenchFiles(folder, files, lines);
  if (status.ok()) return 0;
  std::cerr << "tokenizer_bench: " << status.message() << std::endl;
  return 1;
}
