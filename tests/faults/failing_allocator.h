#pragma once

namespace inflight::testing {

/// This program's `operator new`, which fails when a test says so: on every thread but those that are spared.
struct FailingAllocator {
  /// The allocation after `skipped` ones fails, and `count` - 1 after it.
  static void arm(long skipped, long count);
  static void disarm();

  /// Allocations that failed since arm().
  static long failures();

  /// For the calling thread: the test itself must not run out of memory.
  static void spare_this_thread();
};

}  // namespace inflight::testing
