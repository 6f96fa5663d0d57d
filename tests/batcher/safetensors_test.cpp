#include "inflight_batcher/engine/safetensors.h"

#include <gtest/gtest.h>

#include "tests/batcher/tiny_engine.h"

namespace inflight {
namespace {

using testing::expect_error;
using testing::safetensors_bytes;

struct SafetensorsTest : ::testing::Test {
  SafetensorsFile open(const std::string& bytes) {
    testing::write_file(path, bytes);
    return SafetensorsFile(path);
  }

  void expect_refused(const std::string& bytes, const std::vector<std::string>& parts = {}) {
    std::vector<std::string> all = parts;
    all.push_back(path.string());
    expect_error(ErrorCode::kInvalidArgument, all, [&] { open(bytes); });
  }

  /// A header with one float32 tensor "a".
  static std::string header(const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  }

  testing::TemporaryFolder folder;
  std::filesystem::path path = folder.path() / "model.safetensors";
};

TEST_F(SafetensorsTest, GivesShapesTypesAndData) {
  testing::write_safetensors(path, {{"a", {"F32", {2, 3}, testing::bytes_of<float>({1, 2, 3, 4, 5, 6})}},
                                    {"b", {"BF16", {2}, std::string("\x80\x3f\x00\x40", 4)}}});
  const SafetensorsFile file(path);
  const auto& a = file.at("a");
  EXPECT_EQ(a.dtype, DType::kFloat32);
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(reinterpret_cast<const float*>(a.data)[5], 6.0f);
  EXPECT_EQ(file.at("b").dtype, DType::kBfloat16);
  EXPECT_EQ(static_cast<int>(file.at("b").data[1]), 0x3f);
}

TEST_F(SafetensorsTest, MissingFileAndMissingTensorAreNotFound) {
  expect_error(ErrorCode::kNotFound, {path.string()}, [&] { SafetensorsFile{path}; });
  const SafetensorsFile file = open(safetensors_bytes("{}", ""));
  expect_error(ErrorCode::kNotFound, {"'lm_head'", path.string()}, [&] { file.at("lm_head"); });
}

TEST_F(SafetensorsTest, FilesCutShortAreRefused) {
  const std::string whole = safetensors_bytes(header("[4]", "[0,16]"), std::string(16, 'x'));
  open(whole);
  for (size_t length = 0; length < whole.size(); ++length) expect_refused(whole.substr(0, length));
}

TEST_F(SafetensorsTest, AFolderIsNoWeightsFile) {
  std::filesystem::create_directory(path);
  expect_error(ErrorCode::kInvalidArgument, {path.string()}, [&] { SafetensorsFile{path}; });
}

TEST_F(SafetensorsTest, HeaderLengthsThatLieAreRefused) {
  for (const uint64_t length : {uint64_t{17}, uint64_t{1} << 32, UINT64_MAX, UINT64_MAX - 7}) {
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    expect_refused(bytes + "{}              ", {std::to_string(length)});
  }
}

TEST_F(SafetensorsTest, OffsetsThatLieAreRefused) {
  const std::string data(16, 'x');
  for (const char* offsets :
       {"[0,20]", "[4,20]", "[16,0]", "[0,12]", "[0,0]", "[18446744073709551600,18446744073709551616]", "[-16,0]",
        "[0]", "[]", "{}", "\"0\"", "[\"0\",\"16\"]", "null"})
    expect_refused(safetensors_bytes(header("[4]", offsets), data));
}

TEST_F(SafetensorsTest, ShapesThatLieAreRefused) {
  const std::string data(16, 'x');
  for (const char* shape : {"[5]", "[2]", "[-4]", "[-2,-2]", "[4611686018427387905]", "[4294967296,4294967296]",
                            "[9223372036854775807,2]", "[18446744073709551615]", "[0]", "4", "[\"4\"]", "null", "{}"})
    expect_refused(safetensors_bytes(header(shape, "[0,16]"), data));
}

TEST_F(SafetensorsTest, HeadersThatAreNoTableOfTensorsAreRefused) {
  for (const std::string& text :
       {std::string("not json"), std::string("[]"), std::string("null"), std::string("5"), std::string("{\"a\":5}"),
        std::string("{\"a\":{}}"), std::string("{\"a\":null}"), std::string("\xff\xfe{}"), std::string("{\"\xff\":1}"),
        std::string(100000, '['), std::string(64, '\0'), std::string()})
    expect_refused(safetensors_bytes(text, ""));
}

TEST_F(SafetensorsTest, MetadataIsNoTensor) {
  const SafetensorsFile file = open(safetensors_bytes(R"({"__metadata__":{"format":"pt"}})", ""));
  expect_error(ErrorCode::kNotFound, {"__metadata__"}, [&] { file.at("__metadata__"); });
}

TEST_F(SafetensorsTest, AnUnknownTypeMattersOnlyWhenUsed) {
  testing::write_safetensors(path,
                             {{"good", {"F32", {1}, std::string(4, 0)}}, {"odd", {"F8_E4M3", {4}, std::string(4, 0)}}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.at("good").shape[0], 1);
  expect_error(ErrorCode::kUnsupported, {"'odd'", "F8_E4M3", path.string()}, [&] { file.at("odd"); });
}

TEST_F(SafetensorsTest, EmptyTensorsNeedNoBytes) {
  for (const char* shape : {"[0]", "[5,0]", "[0,9223372036854775807]"}) {
    const SafetensorsFile file = open(safetensors_bytes(header(shape, "[0,0]"), ""));
    EXPECT_NE(std::find(file.at("a").shape.begin(), file.at("a").shape.end(), 0), file.at("a").shape.end());
  }
}

TEST_F(SafetensorsTest, ScalarsHaveOneElement) {
  const SafetensorsFile file = open(safetensors_bytes(header("[]", "[0,4]"), std::string(4, 'x')));
  EXPECT_TRUE(file.at("a").shape.empty());
}

}  // namespace
}  // namespace inflight
