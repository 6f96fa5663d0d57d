#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Wrappers of the warp-level matrix and copy instructions (PTX ISA 8: "mma", "movmatrix", "cp.async").
/// Fragment layouts are the ISA's: with group = lane / 4 and pair = lane % 4, a lane of an m16n8 accumulator holds rows
/// group and group + 8, columns 2 pair and 2 pair + 1.
namespace inflight::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// An 8 x 8 tile of 16-bit elements, transposed among the lanes: lane i gives elements 2 (i % 4) and on of row i / 4,
/// and gets the same of the transposed tile.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t row) {
  uint32_t column;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column) : "r"(row));
  return column;
}

/// sums [16, 8] float32 += a [16, 16] bfloat16 · b [16, 8] bfloat16.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Starts a copy of 16 bytes to shared memory past the L1 cache; writes zeros and reads nothing unless `wanted`.
__device__ __forceinline__ void copy_16_bytes(uint32_t destination, const void* source, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(wanted ? 16 : 0)
               : "memory");
}

/// Brings a line of 128 bytes to the L2 cache.
__device__ __forceinline__ void prefetch_line(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// Closes the thread's group of copies, which may be empty.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most kPending of the thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// 2^x; 0 for -infinity.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace inflight::cuda
