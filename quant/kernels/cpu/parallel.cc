// Compiled with OpenMP.
#include "quant/kernels/cpu/parallel.h"

#include <omp.h>

namespace nibble {

int ThreadCount() { return omp_in_parallel() != 0 ? 1 : omp_get_max_threads(); }

void RunOnThreads(const std::function<void()>& work) {
#pragma omp parallel default(none) shared(work)
  work();
}

void EndThreads() { omp_pause_resource(omp_pause_soft, omp_get_initial_device()); }

}  // namespace nibble
