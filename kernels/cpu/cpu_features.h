#pragma once

namespace inflight::cpu {

/// Instruction sets that the kernels were compiled to use.
struct CpuFeatures {
  bool avx2, fma, f16c, bmi2, avx512f, avx512bw, avx512dq, avx512vl;
};

extern const CpuFeatures kCompiledFeatures;

}  // namespace inflight::cpu
