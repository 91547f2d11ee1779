#include "server/ops/metrics.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "server/ops/grpc_status.h"

namespace nibble {
namespace {

std::string TextOf(const Metrics& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.registry->Collect());
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char bytes[4096];
  for (ssize_t count = 0; (count = read(fd, bytes, sizeof(bytes))) > 0;) {
    answer.append(bytes, static_cast<size_t>(count));
  }
  close(fd);
  return answer;
}

TEST(RpcTimer, CountsByMethodAndCode) {
  Metrics metrics;
  for (int i = 0; i < 2; ++i) {
    RpcTimer timer(metrics, "GetJob");
    EXPECT_EQ(timer.Done(ToGrpcStatus(absl::NotFoundError("x"))).error_message(), "x");
  }
  { RpcTimer timer(metrics, "WatchJob"); }
  const std::string text = TextOf(metrics);
  EXPECT_NE(text.find("nibble_rpcs_total{code=\"NOT_FOUND\",method=\"GetJob\"} 2"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("nibble_rpcs_total{code=\"CANCELLED\",method=\"WatchJob\"} 1"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("nibble_rpc_seconds_count{method=\"GetJob\"} 2"), std::string::npos);
}

TEST(MetricsServer, RunsTheHooksBeforeEachScrape) {
  Metrics metrics;
  int scrapes = 0;
  const auto server =
      MetricsServer::Start("127.0.0.1:0", metrics, {[&] { metrics.queue_depth.Set(++scrapes); }})
          .value();
  EXPECT_NE(HttpGet(server->port(), "/metrics").find("nibble_queue_depth 1\n"), std::string::npos);
  EXPECT_NE(HttpGet(server->port(), "/metrics").find("nibble_queue_depth 2\n"), std::string::npos);
}

TEST(MetricsServer, APortInUseIsAStartUpError) {
  Metrics metrics;
  const auto first = MetricsServer::Start("127.0.0.1:0", metrics, {}).value();
  const std::string address = "127.0.0.1:" + std::to_string(first->port());
  const auto second = MetricsServer::Start(address, metrics, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find("can't listen for metrics on " + address),
            std::string::npos)
      << second.status();
}

TEST(ToGrpcStatus, KeepsEveryCodeAndCutsLongMessages) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "m");
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  const grpc::Status cut = ToGrpcStatus(absl::InternalError(std::string(5000, 'x')));
  EXPECT_EQ(cut.error_message(), std::string(2048, 'x') + "... (cut)");
}

}  // namespace
}  // namespace nibble
