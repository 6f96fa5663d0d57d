#include "inflight_batcher/engine/plan_schema_check.h"

#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "inflight/error.h"
#include "plan_schema.h"

namespace inflight {

namespace {

const valijson::Schema& plan_schema() {
  static const auto* schema = [] {
    static const nlohmann::json text = nlohmann::json::parse(kPlanSchema);
    auto* parsed = new valijson::Schema;
    valijson::adapters::NlohmannJsonAdapter adapter(text);
    valijson::SchemaParser(valijson::SchemaParser::kDraft7).populateSchema(adapter, *parsed);
    return parsed;
  }();
  return *schema;
}

}  // namespace

void check_plan_schema(const nlohmann::json& document) {
  valijson::Validator validator;
  valijson::ValidationResults results;
  valijson::adapters::NlohmannJsonAdapter target(document);
  if (validator.validate(plan_schema(), target, &results)) return;

  // The last error is the outermost one; the first names the place that broke.
  valijson::ValidationResults::Error error;
  std::string text = "it breaks the schema";
  if (results.popError(error)) {
    std::string place;
    for (const std::string& part : error.context) place += part;
    text = concat("at ", place, ": ", error.description);
  }
  throw Error(ErrorCode::kInvalidArgument, text);
}

}  // namespace inflight
