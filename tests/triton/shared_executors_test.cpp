#include "backend/shared_executors.h"

#include <future>

#include "tests/batcher/tiny_engine.h"
#include "tests/triton/harness.h"

namespace inflight::backend {
namespace {

using testing::TemporaryFolder;
using testing::TinyNetwork;
using testing::write_engine;

ExecutorConfig config() {
  ExecutorConfig config;
  config.device = "cpu";
  config.num_threads = 1;
  config.kv_cache.max_tokens = 256;
  return config;
}

class SharedExecutorsTest : public ::testing::Test {
 protected:
  SharedExecutorsTest() { write_engine(folder_.path(), TinyNetwork().plan()); }

  std::unique_ptr<ExecutorLease> lease(const std::string& holder, const ExecutorConfig& with = config(),
                                       const std::string& name = "engine") {
    return std::make_unique<ExecutorLease>(holder, name, folder_.path().string(), with);
  }

  TemporaryFolder folder_;
};

/// Whether the executor answers a request.
bool answers(ExecutorLease& lease) {
  std::promise<bool> answered;
  Request request;
  request.input_ids = {1, 2};
  request.max_tokens = 2;
  lease->submit(std::move(request), [&](Result&& result) { answered.set_value(!result.failed); });
  return answered.get_future().get();
}

TEST_F(SharedExecutorsTest, ModelsWithEqualParametersShare) {
  const auto engine = lease("engine");
  const auto text = lease("text");
  EXPECT_EQ(&**engine, &**text);
  EXPECT_EQ(engine->lender(), "");
  EXPECT_EQ(text->lender(), "engine");
}

TEST_F(SharedExecutorsTest, TheLastLeaseEndsTheExecutor) {
  for (const bool lender_first : {true, false}) {
    auto engine = lease("engine");
    auto text = lease("text");
    (lender_first ? engine : text).reset();
    EXPECT_TRUE(answers(*(lender_first ? text : engine)));
    (lender_first ? text : engine).reset();
    EXPECT_EQ(lease("text")->lender(), "") << "a new executor";
  }
}

TEST_F(SharedExecutorsTest, OtherParametersMeanAnotherExecutor) {
  const auto engine = lease("engine");
  ExecutorConfig other = config();
  other.kv_cache.enable_block_reuse = false;
  EXPECT_NE(&**engine, &**lease("text", other));
  other = config();
  other.max_batch_size = 7;
  EXPECT_NE(&**engine, &**lease("text", other));
}

TEST_F(SharedExecutorsTest, AnotherNameMeansAnotherExecutor) {
  const auto engine = lease("engine");
  EXPECT_NE(&**engine, &**lease("second", config(), "second"));
}

TEST_F(SharedExecutorsTest, InstancesOfOneModelNeverShare) {
  const auto first = lease("engine");
  const auto second = lease("engine");
  EXPECT_NE(&**first, &**second);
  const auto text = lease("text");
  const auto text_second = lease("text");
  EXPECT_NE(&**text, &**text_second) << "but each shares with one of the other model";
  EXPECT_EQ(text->lender(), "engine");
  EXPECT_EQ(text_second->lender(), "engine");
}

TEST_F(SharedExecutorsTest, ARewrittenPlanIsLoadedAfresh) {
  const auto engine = lease("engine");
  const auto plan = folder_.path() / "plan.json";
  std::filesystem::last_write_time(plan, std::filesystem::last_write_time(plan) + std::chrono::seconds(2));
  EXPECT_NE(&**engine, &**lease("text"));
}

TEST_F(SharedExecutorsTest, ModelsThatLoadAtOnceLoadOnce) {
  std::vector<std::future<std::unique_ptr<ExecutorLease>>> loading;
  for (int i = 0; i < 4; ++i)
    loading.push_back(std::async(std::launch::async, [&, i] { return lease("model " + std::to_string(i)); }));
  std::vector<std::unique_ptr<ExecutorLease>> leases;
  for (auto& it : loading) leases.push_back(it.get());
  int loaded = 0;
  for (const auto& it : leases) {
    EXPECT_EQ(&**it, &**leases[0]);
    loaded += it->lender().empty();
  }
  EXPECT_EQ(loaded, 1);
}

TEST_F(SharedExecutorsTest, AFailedLoadIsEverybodysOwn) {
  std::filesystem::remove(folder_.path() / "plan.json");
  for (const char* holder : {"engine", "text"})
    EXPECT_NE(std::string(caught([&] { lease(holder); }).what()).find("plan.json"), std::string::npos);
  write_engine(folder_.path(), TinyNetwork().plan());
  EXPECT_EQ(lease("text")->lender(), "");
}

}  // namespace
}  // namespace inflight::backend
