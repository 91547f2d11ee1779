// Compiled for AVX-512 F, BW, DQ and VL.
#include "quant/kernels/cpu/tile_avx512.h"

namespace nibble {

constinit const TileKernels kAvx512Kernels = MakeTileKernels<Avx512>();

}  // namespace nibble
