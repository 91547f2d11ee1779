// What the running process says of itself.
#pragma once

#include <cstdint>

namespace nibble {

// Most memory that was resident since the program was started, in bytes (VmHWM of /proc: getrusage
// would count the process that started it); 0 when the system does not tell.
int64_t PeakResidentBytes();

}  // namespace nibble
