#include "backend/text/token_table.h"

#include <nlohmann/json.hpp>

#include "inflight/error.h"

namespace inflight::backend {

namespace {

using Json = nlohmann::json;

std::string from_hex(const std::string& digits) {
  std::string bytes;
  bytes.reserve(digits.size() / 2);
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::optional<TokenId> optional_id(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional<TokenId>(value.get<TokenId>());
}

void read_tokens(const Json& json, TokenTable& table) {
  for (const Json& text : json.at("tokens")) {
    TokenText& token = table.tokens.emplace_back();
    if (text.is_null()) continue;
    token.kind = TokenText::Kind::kText;
    token.bytes = from_hex(text.get<std::string>());
  }
  for (const Json& id : json.at("byte_tokens")) table.tokens.at(id.get<size_t>()).kind = TokenText::Kind::kByte;
  for (const Json& id : json.at("special")) table.tokens.at(id.get<size_t>()).special = true;
  for (const auto& [id, text] : json.at("first").items())
    table.first_texts.emplace(static_cast<TokenId>(std::stoi(id)), from_hex(text.get<std::string>()));
}

}  // namespace

TokenTable parse_token_table(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    TokenTable table;
    table.end_id = optional_id(json.at("end_id"));
    table.pad_id = optional_id(json.at("pad_id"));
    table.decoder = json.at("decoder").get<std::string>();
    table.joins_bytes = json.at("joins_bytes").get<bool>();
    read_tokens(json, table);
    for (const Json& sample : json.at("samples")) {
      table.samples.push_back({sample.at("ids").get<std::vector<TokenId>>(), sample.at("skip_special").get<bool>(),
                               sample.at("text").get<std::string>()});
    }
    return table;
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kInternal, concat("the tokenizer process sent no table of its tokens: ", error.what()));
  }
}

}  // namespace inflight::backend
