#include "kernels/cuda/tuning_file.h"

#include <unistd.h>

#include <fstream>
#include <utility>

#include "inflight/error.h"

namespace inflight::cuda {
namespace {

constexpr const char* kVersionLine = "inflight linear tuning 4";
constexpr size_t kMaxLine = 1024;  // a longer one is no line of ours

std::map<std::string, std::string> read_entries(const std::filesystem::path& path) {
  std::map<std::string, std::string> entries;
  std::ifstream in(path);
  std::string line;
  if (path.empty() || !std::getline(in, line) || line != kVersionLine) return entries;
  while (std::getline(in, line)) {
    const size_t tab = line.find('\t');
    if (line.size() > kMaxLine || tab == std::string::npos || tab == 0) continue;
    entries[line.substr(0, tab)] = line.substr(tab + 1);
  }
  return entries;
}

}  // namespace

TuningFile::TuningFile(std::filesystem::path path) : path_(std::move(path)), entries_(read_entries(path_)) {}

const std::string* TuningFile::find(const std::string& key) const {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

void TuningFile::set(const std::string& key, const std::string& value) { entries_[key] = value; }

bool TuningFile::save() {
  if (path_.empty()) return true;
  entries_.merge(read_entries(path_));
  std::error_code error;
  if (path_.has_parent_path()) std::filesystem::create_directories(path_.parent_path(), error);
  const std::filesystem::path draft = concat(path_.string(), ".", getpid());
  std::ofstream out(draft, std::ios::trunc);
  out << kVersionLine << '\n';
  for (const auto& [key, value] : entries_) out << key << '\t' << value << '\n';
  out.close();
  if (out) std::filesystem::rename(draft, path_, error);
  if (out && !error) return true;
  std::filesystem::remove(draft, error);
  return false;
}

}  // namespace inflight::cuda
