#include "kernels/cpu/cpu_features.h"

namespace inflight::cpu {

// Plain data from the compiler's own macros: reading it needs none of the instructions that it tells of.
const CpuFeatures kCompiledFeatures = {
#ifdef __AVX2__
    .avx2 = true,
#endif
#ifdef __FMA__
    .fma = true,
#endif
#ifdef __F16C__
    .f16c = true,
#endif
#ifdef __BMI2__
    .bmi2 = true,
#endif
#ifdef __AVX512F__
    .avx512f = true,
#endif
#ifdef __AVX512BW__
    .avx512bw = true,
#endif
#ifdef __AVX512DQ__
    .avx512dq = true,
#endif
#ifdef __AVX512VL__
    .avx512vl = true,
#endif
};

}  // namespace inflight::cpu
