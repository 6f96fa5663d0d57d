#pragma once

#include <cuda.h>

#include <cstdint>

/// Hopper's asynchronous units in PTX: barriers in shared memory, the bulk tensor copy engine (TMA) and warpgroup
/// matrix products. Semantics: PTX ISA 8.x, "mbarrier", "cp.async.bulk.tensor", "Asynchronous Warpgroup Level Matrix
/// Multiply-Accumulate Instructions".
namespace inflight::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// Makes initialized barriers known to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Arrives, and holds the phase open until `bytes` have been copied in.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/// Waits for the end of the phase of this parity; the phase before the first one counts as ended, with parity 1.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// Barriers of the block's threads by number (0 is __syncthreads); `threads` counts those that arrive or wait.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Where a ring of kStages buffers stands: which buffer is next, and the parity of its turn.
template <int kStages>
class Ring {
 public:
  __device__ __forceinline__ int stage() const { return turn_ % kStages; }
  __device__ __forceinline__ uint32_t parity() const { return turn_ / kStages & 1; }
  __device__ __forceinline__ void advance() { ++turn_; }

 private:
  uint32_t turn_ = 0;
};

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// A box of the tensor into shared memory; parts outside the tensor become zeros and count as bytes all the same.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

/// After ordinary stores to shared memory that the copy engine or the matrix units touch next.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void yield_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Describes a bfloat16 matrix in shared memory whose rows are cut into panels of 64 columns: row r of a panel lies at
/// r * 128 bytes with its 16-byte units permuted (128-byte swizzle). `stride` = bytes from one panel to the next, used
/// only where the rows run along the product's sum (a transposed operand).
__device__ __forceinline__ uint64_t panel_descriptor(const void* start, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | (uint64_t{(stride >> 4) & 0x3fff} << 16) | ((shared_address(start) >> 4) & 0x3fff);
}

/// The same matrix seen from `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

/// Before the first product after its registers were written.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending committed groups are under way.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving copies and uses of a product's registers over this point: past the wait for it, or
/// between products_begin() and it.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (float& value : registers) asm volatile("" : "+f"(value)::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (uint32_t& value : registers) asm volatile("" : "+r"(value)::"memory");
}

/// One warpgroup's product of 64 x 16 and 16 x kN. Thread t of the warpgroup holds of row t / 32 * 16 + t % 32 / 4 (and
/// of the row 8 below) columns 8 * i + t % 4 * 2 and the next in sum[4 * i], sum[4 * i + 1] (and [4 * i + 2], + 3).
template <int kN>
struct Product {
  /// sum (+)= a * b^T; both in shared memory, rows along the 16. Without `accumulate` sum begins at 0.
  static __device__ void rows_by_rows(float (&sum)[kN / 2], uint64_t a, uint64_t b, int accumulate);
  /// sum += a * b; a in registers (as the sum's, two neighbouring columns each), b in shared memory, 16 rows of kN.
  static __device__ void registers_by_columns(float (&sum)[kN / 2], const uint32_t (&a)[4], uint64_t b);
};

#define INFLIGHT_F8(s, i)                                                                                     \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
      "+f"(s[i + 7])
#define INFLIGHT_F32(s, i) INFLIGHT_F8(s, i), INFLIGHT_F8(s, i + 8), INFLIGHT_F8(s, i + 16), INFLIGHT_F8(s, i + 24)

#define INFLIGHT_P8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define INFLIGHT_P16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define INFLIGHT_P24 INFLIGHT_P16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define INFLIGHT_P32                                                                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31"
#define INFLIGHT_P40 INFLIGHT_P32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define INFLIGHT_P48 INFLIGHT_P40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define INFLIGHT_P64 INFLIGHT_P48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define INFLIGHT_P96                                                                                              \
  INFLIGHT_P64                                                                                                    \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90," \
  "%91,%92,%93,%94,%95"
#define INFLIGHT_P128                                                                                           \
  INFLIGHT_P96                                                                                                  \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117," \
  "%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// `p0`..`p5` are the numbers of the operands after the sum's.
#define INFLIGHT_PRODUCT(n, placeholders, p0, p1, p2, p3, p4, ...)                                               \
  template <>                                                                                                    \
  __device__ __forceinline__ void Product<n>::rows_by_rows(float (&s)[n / 2], uint64_t a, uint64_t b,            \
                                                           int accumulate) {                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2                                                        \
                 ", 0;\n"                                                                                        \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" placeholders "}, %" #p0 ", %" #p1  \
                 ", p, 1, 1, 0, 0;\n}\n"                                                                         \
                 : __VA_ARGS__                                                                                   \
                 : "l"(a), "l"(b), "r"(accumulate));                                                             \
  }                                                                                                              \
  template <>                                                                                                    \
  __device__ __forceinline__ void Product<n>::registers_by_columns(float (&s)[n / 2], const uint32_t (&a)[4],    \
                                                                   uint64_t b) {                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" placeholders "}, {%" #p0 ", %" #p1 \
                 ", %" #p2 ", %" #p3 "}, %" #p4 ", 1, 1, 1, 1;\n"                                                \
                 : __VA_ARGS__                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                          \
  }

INFLIGHT_PRODUCT(16, INFLIGHT_P8, 8, 9, 10, 11, 12, INFLIGHT_F8(s, 0))
INFLIGHT_PRODUCT(32, INFLIGHT_P16, 16, 17, 18, 19, 20, INFLIGHT_F8(s, 0), INFLIGHT_F8(s, 8))
INFLIGHT_PRODUCT(48, INFLIGHT_P24, 24, 25, 26, 27, 28, INFLIGHT_F8(s, 0), INFLIGHT_F8(s, 8), INFLIGHT_F8(s, 16))
INFLIGHT_PRODUCT(64, INFLIGHT_P32, 32, 33, 34, 35, 36, INFLIGHT_F32(s, 0))
INFLIGHT_PRODUCT(80, INFLIGHT_P40, 40, 41, 42, 43, 44, INFLIGHT_F32(s, 0), INFLIGHT_F8(s, 32))
INFLIGHT_PRODUCT(96, INFLIGHT_P48, 48, 49, 50, 51, 52, INFLIGHT_F32(s, 0), INFLIGHT_F8(s, 32), INFLIGHT_F8(s, 40))
INFLIGHT_PRODUCT(128, INFLIGHT_P64, 64, 65, 66, 67, 68, INFLIGHT_F32(s, 0), INFLIGHT_F32(s, 32))

INFLIGHT_PRODUCT(192, INFLIGHT_P96, 96, 97, 98, 99, 100, INFLIGHT_F32(s, 0), INFLIGHT_F32(s, 32), INFLIGHT_F32(s, 64))
INFLIGHT_PRODUCT(256, INFLIGHT_P128, 128, 129, 130, 131, 132, INFLIGHT_F32(s, 0), INFLIGHT_F32(s, 32),
                 INFLIGHT_F32(s, 64), INFLIGHT_F32(s, 96))

#undef INFLIGHT_PRODUCT
#undef INFLIGHT_P128
#undef INFLIGHT_P96
#undef INFLIGHT_P64
#undef INFLIGHT_P48
#undef INFLIGHT_P40
#undef INFLIGHT_P32
#undef INFLIGHT_P24
#undef INFLIGHT_P16
#undef INFLIGHT_P8
#undef INFLIGHT_F32
#undef INFLIGHT_F8

}  // namespace inflight::cuda
