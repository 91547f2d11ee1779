#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "quant/model/checkpoint/config.h"

// Whatever is accepted has dimensions that a forward can divide by and multiply.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config =
      nibble::ParseModelConfig(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!config.ok()) return 0;
  const bool sound = config->hidden > 0 && config->layers > 0 && config->heads > 0 &&
                     config->kv_heads > 0 && config->heads % config->kv_heads == 0 &&
                     config->head_dim > 0 && config->head_dim % 2 == 0 && config->vocab > 0 &&
                     config->context > 0 && config->intermediate > 0;
  // OPT has no rotary pairs: its heads may be odd.
  if (!sound && config->family == nibble::Family::kLlama) abort();
  return 0;
}
