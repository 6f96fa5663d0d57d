#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/text/text_row.h"

namespace inflight::backend {

/// The answer of a beam search: a text for each beam. The beams come whole in every result, since a step may rewrite
/// any of them. The engine ends hypotheses at the tokens of a stop word; where other tokens make one up, it ends the
/// text of its beam, and the search goes on.
class BeamRow : public TextAnswer {
 public:
  using OpenStream = std::function<std::unique_ptr<TokenStream>()>;

  /// `open_stream` is asked for a new one for each beam of each result.
  BeamRow(TextRowForm form, OpenStream open_stream) : form_(std::move(form)), open_stream_(std::move(open_stream)) {}

  /// True, always. What lies behind a stop word is left out of the result, too.
  bool take(Result& result, std::vector<std::string>& texts) override;
  bool ended() const override { return ended_; }
  bool has_ended(int) const override { return ended_; }

 private:
  std::string text_of(BeamResult& beam, bool end) const;

  TextRowForm form_;
  OpenStream open_stream_;
  bool ended_ = false;
};

}  // namespace inflight::backend
