#include "server/runner/messages.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

// The outputs of a long prompt with its log-probabilities are some MiB.
constexpr uint32_t kLongestMessage = uint32_t{1} << 30;

struct Header {
  MessageKind kind = MessageKind::kReady;
  uint32_t size = 0;  // bytes that follow
};

absl::Status ReceiveAll(int socket, char* to, size_t size) {
  while (size > 0) {
    const ssize_t count = recv(socket, to, size, MSG_WAITALL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::UnavailableError(StrCat("receive: ", std::strerror(errno)));
    if (count == 0) return absl::UnavailableError("receive: found the end of the stream");
    to += count;
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SendMessage(int socket, MessageKind kind, std::string_view bytes) {
  if (bytes.size() > kLongestMessage) {
    return absl::InternalError(
        StrCat("message: found ", bytes.size(), " bytes, expected at most ", kLongestMessage));
  }
  Header header = {kind, static_cast<uint32_t>(bytes.size())};
  iovec parts[] = {{&header, sizeof(header)}, {const_cast<char*>(bytes.data()), bytes.size()}};
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  for (size_t left = sizeof(header) + bytes.size(); left > 0;) {
    const ssize_t count = sendmsg(socket, &message, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::UnavailableError(StrCat("send: ", std::strerror(errno)));
    left -= static_cast<size_t>(count);
    size_t sent = static_cast<size_t>(count);
    for (iovec& part : parts) {
      const size_t of_part = std::min(sent, part.iov_len);
      part.iov_base = static_cast<char*>(part.iov_base) + of_part;
      part.iov_len -= of_part;
      sent -= of_part;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<MessageKind> ReceiveMessage(int socket, std::string& bytes) {
  Header header;
  NIBBLE_RETURN_IF_ERROR(ReceiveAll(socket, reinterpret_cast<char*>(&header), sizeof(header)));
  if (header.kind < MessageKind::kReady || header.kind > MessageKind::kBroken ||
      header.size > kLongestMessage) {
    return absl::InternalError(StrCat("message: found kind ", static_cast<uint32_t>(header.kind),
                                      " of ", header.size, " bytes, expected 1 to ",
                                      static_cast<uint32_t>(MessageKind::kBroken), " of at most ",
                                      kLongestMessage));
  }
  bytes.resize(header.size);
  NIBBLE_RETURN_IF_ERROR(ReceiveAll(socket, bytes.data(), bytes.size()));
  return header.kind;
}

}  // namespace nibble
