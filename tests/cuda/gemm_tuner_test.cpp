#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/tuning_file.h"

namespace inflight::cuda {
namespace {

class TuningFileTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path path() const { return folder_ / "cache"; }
  void write(const std::string& text) const { std::ofstream(path()) << text; }
  int files() const { return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_), {})); }

  const std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) /
      (std::string("inflight_tuning_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(TuningFileTest, KeepsWhatWasSet) {
  TuningFile file(path());
  EXPECT_EQ(file.find("a: 1 x 2"), nullptr);
  file.set("a: 1 x 2", "skinny 32 1");
  file.set("b", "plain");
  EXPECT_TRUE(file.save());
  const TuningFile again(path());
  ASSERT_NE(again.find("a: 1 x 2"), nullptr);
  EXPECT_EQ(*again.find("a: 1 x 2"), "skinny 32 1");
  EXPECT_EQ(*again.find("b"), "plain");
  EXPECT_EQ(files(), 1) << "a draft was left behind";
}

TEST_F(TuningFileTest, MakesItsFolder) {
  TuningFile file(folder_ / "deep" / "er" / "cache");
  file.set("a", "plain");
  EXPECT_TRUE(file.save());
  EXPECT_NE(TuningFile(folder_ / "deep" / "er" / "cache").find("a"), nullptr);
}

TEST_F(TuningFileTest, TwoWritersKeepEachOthersEntries) {
  TuningFile first(path()), second(path());
  first.set("first", "1");
  first.set("both", "old");
  EXPECT_TRUE(first.save());
  second.set("second", "2");
  second.set("both", "new");
  EXPECT_TRUE(second.save());
  const TuningFile read(path());
  ASSERT_TRUE(read.find("first") && read.find("second") && read.find("both"));
  EXPECT_EQ(*read.find("both"), "new");
}

TEST_F(TuningFileTest, IgnoresForeignFiles) {
  for (const char* text : {"", "\n", "a\tplain\n", "inflight linear tuning 0\na\tplain\n", "\x7f\x45\x4c\x46\0\0"}) {
    write(text);
    EXPECT_EQ(TuningFile(path()).find("a"), nullptr) << text;
  }
  TuningFile file(path());
  file.set("a", "plain");
  EXPECT_TRUE(file.save());
  EXPECT_NE(TuningFile(path()).find("a"), nullptr);
}

TEST_F(TuningFileTest, SkipsDamagedLines) {
  write("inflight linear tuning 4\nno tab here\n\tno key\n" + std::string(5000, 'x') + "\tlong\ngood\tplain\ncut");
  const TuningFile file(path());
  ASSERT_NE(file.find("good"), nullptr);
  EXPECT_EQ(*file.find("good"), "plain");
  EXPECT_EQ(file.find(""), nullptr);
  EXPECT_EQ(file.find("cut"), nullptr);
  EXPECT_EQ(file.find(std::string(5000, 'x')), nullptr);
}

TEST_F(TuningFileTest, SaysWhenItCannotBeWritten) {
  write("a file, not a folder");
  TuningFile file(path() / "cache");
  file.set("a", "plain");
  EXPECT_FALSE(file.save());
}

TEST_F(TuningFileTest, LivesInMemoryWithoutAPath) {
  TuningFile file{std::filesystem::path()};
  file.set("a", "plain");
  EXPECT_TRUE(file.save());
  EXPECT_NE(file.find("a"), nullptr);
  EXPECT_EQ(files(), 0);
}

TEST(LinearChoice, ReadsBackWhatItWrites) {
  LinearChoice library{LinearChoice::Kind::kCublasLt};
  for (size_t i = 0; i < library.algorithm.size(); ++i) library.algorithm[i] = 0x0123456789abcdefull * (i + 1);
  for (const LinearChoice& choice : {LinearChoice{}, LinearChoice{LinearChoice::Kind::kSkinny, {48, 2}, {}},
                                     LinearChoice{LinearChoice::Kind::kSlim, {}, {}, {}, {4, 2}},
                                     LinearChoice{LinearChoice::Kind::kTiled, {}, {}, {128, 256, 2}}, library}) {
    const std::optional<LinearChoice> read = choice_of(text_of(choice));
    ASSERT_TRUE(read) << text_of(choice);
    EXPECT_EQ(read->kind, choice.kind);
    EXPECT_EQ(read->skinny, choice.skinny);
    EXPECT_EQ(read->algorithm, choice.algorithm);
    EXPECT_EQ(read->tiled, choice.tiled);
    EXPECT_EQ(read->slim, choice.slim);
  }
}

TEST(LinearChoice, RefusesOtherTexts) {
  const std::string hex = text_of(LinearChoice{LinearChoice::Kind::kCublasLt});
  for (const std::string& text :
       {std::string(), std::string("plainly"), std::string("plain 1"), std::string("skinny"), std::string("skinny 32"),
        std::string("skinny 32 1 1"), std::string("skinny x y"), std::string("slim"), std::string("slim 2"),
        std::string("slim 2 1 1"), std::string("slim a b"), std::string("tiled 128 256"),
        std::string("tiled 128 256 2 1"), std::string("cublaslt"), std::string("cublaslt 0123"), hex + "0",
        hex.substr(0, hex.size() - 1), hex.substr(0, hex.size() - 1) + "g"})
    EXPECT_FALSE(choice_of(text)) << text;
}

TEST(RowBuckets, RoundUp) {
  EXPECT_EQ(bucket_of(1), 1);
  EXPECT_EQ(bucket_of(3), 4);
  EXPECT_EQ(bucket_of(17), 32);
  EXPECT_EQ(bucket_of(64), 64);
  EXPECT_EQ(bucket_of(65), 96);
  EXPECT_EQ(bucket_of(8192), 8192);
  EXPECT_EQ(bucket_of(10000), 8192);
}

TEST(LinearKey, NamesTellProductsApart) {
  const LinearKey key{64, 4096, 2048, false, false, false};
  EXPECT_EQ(text_of(key), "64 x 4096 x 2048 bfloat16");
  EXPECT_EQ(text_of(LinearKey{1, 2, 3, true, true, false}), "1 x 2 x 3 float32 bias");
  EXPECT_EQ(text_of(LinearKey{1, 2, 3, false, false, true}), "1 x 2 x 3 bfloat16 gated");
}

}  // namespace
}  // namespace inflight::cuda
