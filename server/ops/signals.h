#pragma once

namespace nibble {

// SIGTERM and SIGINT, taken from every thread. Make it before any thread starts.
class StopSignals {
 public:
  StopSignals();
  // Waits for one and returns its number.
  int Wait() const;
};

}  // namespace nibble
