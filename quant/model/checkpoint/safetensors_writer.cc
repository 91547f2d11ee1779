#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_join.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {
namespace {

constexpr size_t kHeaderAlignment = 8;

absl::Status WriteError(int error, const std::filesystem::path& path) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  const std::string message = StrCat("can't write ", path.string(), ": ", strerror(error));
  return full ? absl::ResourceExhaustedError(message) : absl::DataLossError(message);
}

absl::Status WriteAll(int descriptor, absl::Span<const uint8_t> bytes,
                      const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return WriteError(errno, path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const NamedTensor& tensor) {
  int64_t bytes = DTypeBytes(tensor.dtype);
  bool overflow = false;
  for (const int64_t size : tensor.shape) {
    overflow |= size < 0 || __builtin_mul_overflow(bytes, size, &bytes);
  }
  if (overflow || bytes != static_cast<int64_t>(tensor.bytes.size())) {
    return absl::InvalidArgumentError(StrCat("tensor ", Quoted(tensor.name), ": found ",
                                             tensor.bytes.size(), " bytes, expected those of ",
                                             DTypeName(tensor.dtype), " [",
                                             absl::StrJoin(tensor.shape, ", "), "]"));
  }
  return absl::OkStatus();
}

// Largest types first, so that every tensor is aligned to its own type; then by name.
std::vector<const NamedTensor*> InFileOrder(absl::Span<const NamedTensor> tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const int64_t a_bytes = DTypeBytes(a->dtype), b_bytes = DTypeBytes(b->dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });
  return order;
}

// The length field and the header. transformers wants the "format".
absl::StatusOr<std::string> FileStart(absl::Span<const NamedTensor* const> order) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    NIBBLE_RETURN_IF_ERROR(CheckTensor(*tensor));
    if (header.contains(tensor->name)) {
      return absl::InvalidArgumentError(
          StrCat("tensor ", Quoted(tensor->name), ": the name is there twice or reserved"));
    }
    const uint64_t end = offset + tensor->bytes.size();
    header[tensor->name] = {{"dtype", std::string(DTypeName(tensor->dtype))},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  // An invalid name has been replaced, so that it does not come back.
  NIBBLE_ASSIGN_OR_RETURN(const Json back, ParseJson(text, "header", {.bytes = text.size()}));
  if (back != header) return absl::InvalidArgumentError("a tensor's name is not valid UTF-8");
  text.append((kHeaderAlignment - text.size() % kHeaderAlignment) % kHeaderAlignment, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

}  // namespace

absl::Status WriteSafetensors(const std::filesystem::path& path,
                              absl::Span<const NamedTensor> tensors) {
  const std::vector<const NamedTensor*> order = InFileOrder(tensors);
  NIBBLE_ASSIGN_OR_RETURN(const std::string start, FileStart(order));
  int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return WriteError(errno, path);
  absl::Cleanup close_file = [descriptor] { close(descriptor); };
  NIBBLE_RETURN_IF_ERROR(
      WriteAll(descriptor, {reinterpret_cast<const uint8_t*>(start.data()), start.size()}, path));
  for (const NamedTensor* tensor : order) {
    NIBBLE_RETURN_IF_ERROR(WriteAll(descriptor, tensor->bytes, path));
  }
  if (fsync(descriptor) != 0) return WriteError(errno, path);
  std::move(close_file).Cancel();
  return close(descriptor) == 0 ? absl::OkStatus() : WriteError(errno, path);
}

}  // namespace nibble
