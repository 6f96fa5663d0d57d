#include "backend/word_list.h"

#include <algorithm>
#include <span>

#include "inflight/error.h"

namespace inflight::backend {

std::vector<std::vector<TokenId>> parse_word_list(const std::string& name, const std::vector<int32_t>& values) {
  check(values.size() % 2 == 0, ErrorCode::kInvalidArgument, "input ", name, " has ", values.size(),
        " values; wanted an even number: token ids, then as many end offsets");
  const auto count = static_cast<int32_t>(values.size() / 2);
  const std::span<const int32_t> tokens(values.data(), static_cast<size_t>(count));
  const std::span<const int32_t> offsets(values.data() + count, static_cast<size_t>(count));
  const auto padding = std::find(offsets.begin(), offsets.end(), -1);
  check(std::all_of(padding, offsets.end(), [](int32_t offset) { return offset == -1; }), ErrorCode::kInvalidArgument,
        "input ", name, " has end offsets after the first -1; wanted -1 to the end");

  std::vector<std::vector<TokenId>> words;
  int32_t begin = 0;
  for (auto offset = offsets.begin(); offset != padding; begin = *offset++) {
    check(*offset > begin, ErrorCode::kInvalidArgument, "input ", name, " has the end offset ", *offset, " after ",
          begin, "; wanted rising offsets");
    check(*offset <= count, ErrorCode::kInvalidArgument, "input ", name, " has the end offset ", *offset,
          "; wanted at most the number of tokens, ", count);
    words.emplace_back(tokens.begin() + begin, tokens.begin() + *offset);
  }
  return words;
}

}  // namespace inflight::backend
