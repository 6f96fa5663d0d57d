#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

namespace inflight::cuda {

/// Timed choices between processes: a text file of a version line and lines "key TAB value". Several processes may
/// share one: it is replaced whole, and saving keeps what the others have added meanwhile.
class TuningFile {
 public:
  /// Reads the file. One that is missing, of another version or no such file at all counts as empty, and a damaged line
  /// as absent. An empty path is a file in memory alone.
  explicit TuningFile(std::filesystem::path path);

  /// The value, or null. Keys and values hold no tab and no line break.
  const std::string* find(const std::string& key) const;
  void set(const std::string& key, const std::string& value);
  /// Whether the file could be written; nothing else is lost if not.
  bool save();

 private:
  std::filesystem::path path_;
  std::map<std::string, std::string> entries_;
};

}  // namespace inflight::cuda
