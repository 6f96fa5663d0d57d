// Compiled without -march, so that the check below runs on processors that could not run the kernels.

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/ops.h"

namespace inflight::cpu {
namespace {

std::string missing_features() {
  std::string missing;
#ifdef __x86_64__
  const auto need = [&](bool compiled, bool present, const char* name) {
    if (!compiled || present) return;
    missing += missing.empty() ? "" : ", ";
    missing += name;
  };
  need(kCompiledFeatures.avx2, __builtin_cpu_supports("avx2"), "avx2");
  need(kCompiledFeatures.fma, __builtin_cpu_supports("fma"), "fma");
  need(kCompiledFeatures.f16c, __builtin_cpu_supports("f16c"), "f16c");
  need(kCompiledFeatures.bmi2, __builtin_cpu_supports("bmi2"), "bmi2");
  need(kCompiledFeatures.avx512f, __builtin_cpu_supports("avx512f"), "avx512f");
  need(kCompiledFeatures.avx512bw, __builtin_cpu_supports("avx512bw"), "avx512bw");
  need(kCompiledFeatures.avx512dq, __builtin_cpu_supports("avx512dq"), "avx512dq");
  need(kCompiledFeatures.avx512vl, __builtin_cpu_supports("avx512vl"), "avx512vl");
#endif
  return missing;
}

constexpr OpTable kTable = {
    .device = "cpu",
    .embedding = embedding,
    .gather_rows = gather_rows,
    .linear = linear,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .activation = activation,
    .gated_activation = gated_activation,
    .add = add,
    .rope_kv_write = rope_kv_write,
    .attention = attention,
    .copy_kv_blocks = copy_kv_blocks,
    .sample = sample,
    .best_candidates = best_candidates,
};

}  // namespace

const OpTable& op_table() {
  const std::string missing = missing_features();
  if (!missing.empty())
    throw Error(ErrorCode::kUnsupported,
                "the CPU kernels were compiled for " INFLIGHT_CPU_ARCH "; this processor lacks " + missing);
  return kTable;
}

}  // namespace inflight::cpu
