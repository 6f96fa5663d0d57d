#include <future>

#include "inflight_batcher/api/executor.h"
#include "inflight_batcher/engine/plan.h"
#include "inflight_batcher/engine/safetensors.h"
#include "tests/batcher/tiny_engine.h"
#include "tests/fuzz/targets.h"

namespace inflight::fuzz {

namespace {

using testing::json;
using testing::TemporaryFolder;
using testing::TinyNetwork;
using testing::write_file;

/// A value that does not belong there, or another one of the document.
json strange(Dice& dice, const json& document) {
  switch (dice.below(9)) {
    case 0: return nullptr;
    case 1: return dice.integer();
    case 2: return dice.real();
    case 3: return dice.chance(0.5);
    case 4: return json::array();
    case 5: return json::object();
    case 6: return dice.pick(std::vector<std::string>{"", "x", "normed", "layers.{layer}.qkv", "{layer+9}", "axis0"});
    case 7: return json::array({dice.integer(), dice.integer()});
    default: return dice.pick(std::vector<json>(document.begin(), document.end()));
  }
}

/// Walks down to some value of the document and changes, removes or doubles it.
void change(Dice& dice, json& document) {
  json* here = &document;
  while (here->is_structured() && !here->empty() && dice.chance(0.85)) {
    auto place = here->begin();
    std::advance(place, dice.below(static_cast<int64_t>(here->size())));
    if (dice.chance(0.03)) {
      here->erase(place);
      return;
    }
    if (here->is_array() && dice.chance(0.03)) {
      const json copy = *place;
      here->push_back(copy);
      return;
    }
    here = &*place;
  }
  if (here->is_number() && dice.chance(0.6)) {
    const int64_t shift = dice.pick(std::vector<int64_t>{-1, 1, 3, -7, 64, 1000});
    const auto shifted = [&] { return static_cast<int64_t>(here->get<uint64_t>() + static_cast<uint64_t>(shift)); };
    *here = here->is_number_integer() ? json(shifted()) : json(here->get<double>() * -2);
  } else if (here != &document) {
    *here = strange(dice, document);
  }
}

ExecutorConfig small_config() {
  ExecutorConfig config;
  config.device = "cpu";
  config.num_threads = 1;
  config.max_batch_size = 2;
  config.max_num_tokens = 16;
  config.kv_cache.max_tokens = 256;
  config.kv_cache.block_size = 8;
  config.kv_cache.cpu_memory_bytes = 1 << 24;
  return config;
}

/// What loads must also run, within the memory that is its own.
void run_engine(const std::filesystem::path& folder) {
  Executor executor(folder.string(), small_config());
  Request request;
  request.input_ids = {1, 2, 3, 4, 5};
  request.max_tokens = 3;
  std::promise<void> done;
  executor.submit(request, [&](Result&& result) {
    if (result.request_final) done.set_value();
  });
  done.get_future().wait();
}

/// A plan with a fault, as text or as a document, and the engine of what is accepted.
class PlanTarget : public Target {
 public:
  PlanTarget() : document_(TinyNetwork().plan()), text_(document_.dump()) {
    testing::write_engine(folder_.path(), document_);
  }
  void run(Dice& dice) override {
    if (dice.chance(0.3)) {
      write_file(folder_.path() / "plan.json", dice.damaged(text_));
    } else {
      json changed = document_;
      for (int64_t i = dice.between(1, 3); i > 0; --i) change(dice, changed);
      write_file(folder_.path() / "plan.json", changed.dump(-1, ' ', false, json::error_handler_t::replace));
    }
    run_engine(folder_.path());
  }

 private:
  TemporaryFolder folder_;
  json document_;
  std::string text_;
};

/// A safetensors file with a fault, mostly in the header, under the engine that reads it.
class SafetensorsTarget : public Target {
 public:
  SafetensorsTarget() {
    testing::write_engine(folder_.path(), TinyNetwork().plan());
    std::ifstream file(path(), std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    std::memcpy(&header_bytes_, bytes_.data(), sizeof(header_bytes_));
  }
  void run(Dice& dice) override {
    const std::string header = bytes_.substr(8, header_bytes_), data = bytes_.substr(8 + header_bytes_);
    std::string file;
    if (dice.chance(0.3)) {
      file = dice.damaged(bytes_);
    } else if (dice.chance(0.5)) {
      file = testing::safetensors_bytes(dice.damaged(header), data);
    } else {
      json changed = json::parse(header);
      change(dice, changed);
      file = testing::safetensors_bytes(changed.dump(-1, ' ', false, json::error_handler_t::replace), data);
    }
    write_file(path(), file);
    const SafetensorsFile opened(path());
    for (const char* name : {"embedding", "layers.0.q"}) {
      const SafetensorsFile::Tensor& tensor = opened.at(name);
      if (tensor.shape != std::vector<int64_t>{0} && tensor.data == nullptr) throw std::logic_error("no data");
    }
    run_engine(folder_.path());
  }

 private:
  std::filesystem::path path() const { return folder_.path() / "model.safetensors"; }

  TemporaryFolder folder_;
  std::string bytes_;
  uint64_t header_bytes_ = 0;
};

}  // namespace

std::vector<NamedTarget> file_targets() {
  return {{"plan", 4, [] { return std::make_unique<PlanTarget>(); }},
          {"safetensors", 4, [] { return std::make_unique<SafetensorsTarget>(); }}};
}

}  // namespace inflight::fuzz
