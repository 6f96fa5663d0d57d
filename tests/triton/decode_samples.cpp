// decode_samples TABLE: decodes every sample of a token table as the backend decodes a stream, in random chunks, and
// prints those whose text differs. Ends with 1 when there are any.

#include <fstream>
#include <iostream>
#include <iterator>
#include <random>

#include "backend/text/detokenizer.h"

namespace {

using namespace inflight;
using namespace inflight::backend;

std::string decoded(const TokenTable& table, const DecodedSample& sample, size_t longest_chunk, std::mt19937& random) {
  TableStream stream(table, sample.skip_special);
  std::string text;
  const std::span<const TokenId> ids(sample.ids);
  for (size_t begin = 0; begin < ids.size();) {
    const size_t size = std::min(ids.size() - begin, 1 + random() % longest_chunk);
    const size_t sent = text.size();
    stream.push(ids.subspan(begin, size), false, text);
    if (find_malformed_utf8(std::string_view(text).substr(sent)) != std::string::npos) return "a broken chunk: " + text;
    begin += size;
  }
  stream.push({}, true, text);
  return text;
}

}  // namespace

int main(int, char** arguments) {
  std::ifstream file(arguments[1]);
  const TokenTable table = parse_token_table({std::istreambuf_iterator<char>(file), {}});
  std::mt19937 random(1);
  int wrong = table.tokens.empty() ? 1 : 0;
  for (const DecodedSample& sample : table.samples) {
    for (const size_t longest_chunk : {1, 4}) {
      const std::string text = decoded(table, sample, longest_chunk, random);
      if (text == sample.text) continue;
      std::cout << "wanted: " << sample.text << "\nfound:  " << text << "\n";
      ++wrong;
    }
  }
  std::cout << table.samples.size() << " samples, " << wrong << " wrong\n";
  return wrong > 0;
}
