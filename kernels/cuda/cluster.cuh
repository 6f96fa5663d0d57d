#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

/// What the blocks of a cluster share in PTX: barriers, each other's shared memory, and copies that go to several of
/// them. Semantics: PTX ISA 8.x, "mapa", "barrier.cluster", "cp.async.bulk.tensor".
namespace inflight::cuda {

/// Every thread of every block of the cluster that has not ended.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/// Its two halves, for what lies between. Nothing that was written before is sure to be seen after, but for barriers
/// made known by barrier_init_fence().
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

/// Arrives at the barrier that lies at the same place in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

/// Writes the value to this block's `to` in the shared memory of the cluster's block `rank`, where it counts as bytes
/// of the barrier at this barrier's place.
__device__ __forceinline__ void send_to_block(uint32_t rank, float4* to, uint64_t* barrier, const float4& value) {
  asm volatile(
      "{\n"
      ".reg .b32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %6;\n"
      "mapa.shared::cluster.u32 counted, %1, %6;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%2, %3, %4, %5}, [counted];\n"
      "}\n" ::"r"(shared_address(to)),
      "r"(shared_address(barrier)), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(rank)
      : "memory");
}

/// A box of the tensor to the same place in the shared memory of each block in `blocks` (bit r: rank r), where it
/// counts as bytes of the barrier at this barrier's place.
__device__ __forceinline__ void copy_box_to(uint16_t blocks, void* to, const CUtensorMap& map, uint64_t* barrier, int x,
                                            int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

}  // namespace inflight::cuda
