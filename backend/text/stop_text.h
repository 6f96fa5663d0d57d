#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace inflight::backend {

/// Finds the stop words of one sequence in its text, however the text is cut into pieces, and lets nothing beyond the
/// first of them out: text that may turn out to be the beginning of a stop word is held back.
class StopText {
 public:
  /// Empty words are left out.
  explicit StopText(std::vector<std::string> words);

  /// Appends to `out` what may be sent of the text so far. True when it ends with a stop word that was completed in
  /// `text`; with `may_end` false none counts.
  bool push(std::string_view text, bool may_end, std::string& out);

  /// The sequence has ended: what was held back goes out.
  void finish(std::string& out);

 private:
  size_t earliest_end(size_t searched) const;
  size_t possible_beginning() const;

  std::vector<std::string> words_;
  std::string held_;
};

}  // namespace inflight::backend
