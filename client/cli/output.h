// How messages are printed.
#pragma once

#include <google/protobuf/message.h>

#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

// One line of JSON: the proto's field names, unset numbers and strings included.
absl::Status PrintJson(const google::protobuf::Message& message, std::ostream& out);

// Rows of equal length as columns; the first row is the heading.
void PrintTable(const std::vector<std::vector<std::string>>& rows, std::ostream& out);

// "JOB_STATE_RUNNING" without "JOB_STATE_": "RUNNING".
std::string ShortName(const std::string& name, const std::string& prefix);

// 1536 -> "1.5 KiB".
std::string HumanBytes(int64_t bytes);

// 75 -> "1:15".
std::string HumanSeconds(double seconds);

// `value` with so many digits after the point.
std::string Fixed(double value, int digits);

}  // namespace nibble
