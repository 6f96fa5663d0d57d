#include "tests/faults/failing_allocator.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace inflight::testing {

namespace {

thread_local bool spared = false;
std::atomic<bool> armed{false};
std::atomic<long> first_failure{0};
std::atomic<long> last_failure{0};
std::atomic<long> allocations{0};
std::atomic<long> failed{0};

void fail_if_due() {
  if (!armed || spared) return;
  const long number = allocations++;
  if (number < first_failure || number > last_failure) return;
  ++failed;
  throw std::bad_alloc();
}

void* allocate(size_t bytes, size_t alignment) {
  fail_if_due();
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes == 0 ? 1 : bytes) != 0) throw std::bad_alloc();
  return memory;
}

}  // namespace

void FailingAllocator::arm(long skipped, long count) {
  first_failure = skipped;
  last_failure = skipped + count - 1;
  allocations = failed = 0;
  armed = true;
}

void FailingAllocator::disarm() { armed = false; }
long FailingAllocator::failures() { return failed; }
void FailingAllocator::spare_this_thread() { spared = true; }

}  // namespace inflight::testing

using inflight::testing::allocate;

void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new[](size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) { return allocate(bytes, static_cast<size_t>(alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
