// The one boundary between LibTorch's exceptions and absl::Status.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// Calls `function`, which returns a Status or a StatusOr. An exception becomes INTERNAL with its
// message, lack of memory RESOURCE_EXHAUSTED.
template <class Function>
auto CatchTorch(Function&& function) -> decltype(function()) {
  try {
    return std::forward<Function>(function)();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (const c10::Error& error) {
    return absl::InternalError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace nibble
