#include "backend/loaded_model.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace inflight::backend {
namespace {

// Stands for what libraries that were loaded earlier have registered: it must not run under the model's threads.
void destroy_statics() { std::_Exit(9); }

[[noreturn]] void end_process(bool while_loaded) {
  std::atexit(destroy_statics);
  auto* model = new LoadedModel;
  if (!while_loaded) delete model;
  std::exit(0);
}

TEST(LoadedModel, AProcessThatExitsWithOneEndsBeforeStaticsAreDestroyed) {
  EXPECT_EXIT(end_process(true), testing::ExitedWithCode(1), "");
}

TEST(LoadedModel, AProcessThatExitsWithNoneEndsAsEver) {
  EXPECT_EXIT(end_process(false), testing::ExitedWithCode(9), "");
}

}  // namespace
}  // namespace inflight::backend
