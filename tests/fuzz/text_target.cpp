#include "backend/text/stop_text.h"
#include "backend/text/utf8.h"
#include "tests/fuzz/targets.h"

namespace inflight::fuzz {

namespace {

using backend::StopText;
using backend::Utf8Stream;

/// Of letters, parts of characters and any bytes.
std::string drawn_bytes(Dice& dice, int64_t longest) {
  static const std::vector<std::string> kParts = {"a",    "b",    "\xC3",     "\xA9",   "\xE2\x82",
                                                  "\xAC", "\xF0", "\x9F\x98", "\x80",   "\xED\xA0",
                                                  "\xC0", "\xF5", "\xFF",     "\u00e9", "\u20ac"};
  std::string bytes;
  for (int64_t count = dice.below(longest + 1); count > 0; --count)
    bytes += dice.chance(0.95) ? dice.pick(kParts) : dice.bytes(3);
  return bytes;
}

template <typename Push>
void in_pieces(Dice& dice, std::string_view bytes, const Push& push) {
  while (!bytes.empty()) {
    const auto length = std::min(static_cast<size_t>(dice.between(1, 5)), bytes.size());
    push(bytes.substr(0, length));
    bytes.remove_prefix(length);
  }
}

/// Bytes of tokens on their way to a client: characters first, then the stop words. However they are cut, the same text
/// comes out, and it is UTF-8.
class TextTarget : public Target {
 public:
  void run(Dice& dice) override {
    const auto replacing = dice.chance(0.5) ? Utf8Stream::Replacing::kRuns : Utf8Stream::Replacing::kBytes;
    const std::string bytes = drawn_bytes(dice, 30);
    Utf8Stream at_once(replacing), cut(replacing);
    std::string whole, text;
    at_once.append(bytes, whole);
    at_once.finish(whole);
    in_pieces(dice, bytes, [&](std::string_view piece) {
      cut.append(piece, text);
      if (backend::find_malformed_utf8(text) != std::string::npos) throw std::logic_error("a text that is no UTF-8");
    });
    cut.finish(text);
    if (text != whole) throw std::logic_error("the text depends on how its bytes are cut");
    stop(dice, text);
  }

 private:
  static void stop(Dice& dice, const std::string& text) {
    std::vector<std::string> words(static_cast<size_t>(dice.below(4)));
    for (std::string& word : words)
      word = dice.chance(0.5) ? drawn_bytes(dice, 3)
                              : text.substr(static_cast<size_t>(dice.below(9)) % (text.size() + 1), 4);
    StopText at_once(words), cut(words);
    std::string whole, out;
    if (!at_once.push(text, true, whole)) at_once.finish(whole);
    bool ended = false;
    in_pieces(dice, text, [&](std::string_view piece) { ended = ended || cut.push(piece, true, out); });
    if (!ended) cut.finish(out);
    if (out != whole) throw std::logic_error("a stop word depends on how the text is cut");
    if (!text.starts_with(out)) throw std::logic_error("a text that was not there");
  }
};

}  // namespace

std::vector<NamedTarget> text_targets() {
  return {{"text", 0.5, [] { return std::make_unique<TextTarget>(); }}};
}

}  // namespace inflight::fuzz
