// Prints a line of JSON for each case: its time and its share of the limit that binds it. The limits are measured
// first. Usage: cuda_bench [family ...], all families without a name.

#include "kernels/bench/cuda_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <vector>

#include "kernels/bench/cuda_data.h"
#include "kernels/bench/cuda_power_meter.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/ops.h"

namespace inflight::bench {
namespace {

using cuda::check_cuda;

constexpr double kGraphUs = 1000;     // a replay is at least about as long, so that its own launch does not count
constexpr double kCaseUs = 60'000;    // of all replays of a case
constexpr int kMaxGraphRuns = 2000;   // kernels of one graph, about
constexpr double kQueuedUs = 10'000;  // of the replays that wait at a time while a case is sustained
constexpr int kMinReplays = 5, kMaxReplays = 41;

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "a CUDA event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "a CUDA event"); }
  /// Once both have happened.
  double us_since(const Event& start) const {
    float ms = 0;
    check_cuda(cudaEventSynchronize(event_), "a timed run");
    check_cuda(cudaEventElapsedTime(&ms, start.event_, event_), "a timed run");
    return ms * 1e3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

double time_once(cudaStream_t stream, const std::function<void()>& work) {
  Event start, end;
  start.record(stream);
  work();
  end.record(stream);
  return end.us_since(start);
}

/// A graph of work captured from a stream, ready to replay.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& work) : stream_(stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a capture");
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph_);
      cudaGraphDestroy(graph_);
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &graph_), "a capture");
    check_cuda(cudaGraphInstantiate(&executable_, graph_, 0), "a graph");
  }
  ~Graph() {
    if (executable_) cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay() { check_cuda(cudaGraphLaunch(executable_, stream_), "a graph's replay"); }
  double replay_us() {
    return time_once(stream_, [&] { replay(); });
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

/// As many rounds of the runs in a graph as make its own launch not count.
struct Replays {
  Replays(cudaStream_t stream, const std::function<void(int)>& run, int rotations)
      : runs(rotations * rounds_of(stream, run, rotations)), graph(stream, [&] {
          for (int i = 0; i < runs; ++i) run(i % rotations);
        }) {}

  int runs;
  Graph graph;

 private:
  static int rounds_of(cudaStream_t stream, const std::function<void(int)>& run, int rotations) {
    const auto once_each = [&] {
      for (int i = 0; i < rotations; ++i) run(i);
    };
    once_each();  // whatever is made, loaded or timed at the first use
    const double round_us = std::max(1.0, time_once(stream, once_each));
    return std::clamp(static_cast<int>(kGraphUs / round_us), 1, std::max(1, kMaxGraphRuns / rotations));
  }
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double measured_read_bandwidth(Bench& bench) {
  const Buffer source = random_buffer({int64_t{1} << 30});
  const Buffer sums(DType::kUInt8, {bytes_of_sums(source)});
  const double us = bench.time_us([&](int) { read_all(source, sums, bench.context()); }, 1);
  return static_cast<double>(source.view.bytes()) / us * 1e6;
}

double measured_matrix_rate(Bench& bench) {
  constexpr int64_t kSize = 8192;
  const Buffer x = random_buffer({kSize, kSize}), weight = random_buffer({kSize, kSize}, 0.02f);
  const Buffer out(DType::kBfloat16, {kSize, kSize});
  const double us = bench.time_us([&](int) { cuda::linear({x, weight, {}, out}, bench.context()); }, 1);
  return 2.0 * kSize * kSize * kSize / us * 1e6;
}

std::map<std::string, Family>& families() {
  static std::map<std::string, Family> all;
  return all;
}

}  // namespace

Registered::Registered(const std::string& name, Family family) { families()[name] = std::move(family); }

Bench::Bench(cuda::CudaContext& context) : context_(context) {
  read_bandwidth_ = measured_read_bandwidth(*this);
  matrix_rate_ = measured_matrix_rate(*this);
  std::printf("{\"op\": \"limits\", \"read_TBps\": %.3f, \"matrix_TFLOPs\": %.1f}\n", read_bandwidth_ / 1e12,
              matrix_rate_ / 1e12);
  std::fflush(stdout);
}

double Bench::time_us(const std::function<void(int)>& run, int rotations) {
  Replays replays(context_.stream(), run, rotations);
  replays.graph.replay_us();
  const double replay_us = replays.graph.replay_us();
  std::vector<double> times(std::clamp(static_cast<int>(kCaseUs / replay_us), kMinReplays, kMaxReplays));
  for (double& time : times) time = replays.graph.replay_us();
  return median(times) / replays.runs;
}

void Bench::measure(const Case& what, const std::function<void(int)>& run, int rotations) {
  print(what, time_us(run, rotations), "");
}

void Bench::measure_sustained(const Case& what, const std::function<void(int)>& run, int rotations, double seconds) {
  Replays replays(context_.stream(), run, rotations);
  const int at_once = std::max(1, static_cast<int>(kQueuedUs / replays.graph.replay_us()));
  PowerMeter& meter = context_.state<PowerMeter>();
  const auto queue = [&](int count) {
    for (int i = 0; i < count; ++i) replays.graph.replay();
  };
  const auto run_for = [&](double wanted) {
    double us = 0;
    int64_t count = 0;
    for (; us < wanted * 1e6; count += at_once) us += time_once(context_.stream(), [&] { queue(at_once); });
    return us / static_cast<double>(count) / replays.runs;
  };
  const int while_read = at_once * static_cast<int>(1e6 * PowerMeter::kMostSecondsOfReading / kQueuedUs);
  run_for(seconds);
  queue(while_read);
  meter.start();
  const double us = run_for(seconds);
  queue(while_read);
  const PowerMeter::Reading reading = meter.read();
  print(what, us,
        concat(", \"watts\": ", reading.watts, ", \"sm_mhz\": ", reading.sm_mhz,
               ", \"joules\": ", reading.watts * us * 1e-6));
}

void Bench::print(const Case& what, double us, const std::string& more) const {
  const double read_us = what.bytes / read_bandwidth_ * 1e6, matrix_us = what.flops / matrix_rate_ * 1e6;
  std::printf(
      "{\"op\": \"%s\", \"shape\": \"%s\", \"us\": %.3f, \"TBps\": %.3f, \"TFLOPs\": %.1f, \"share_of_limit\": %.3f, "
      "\"limit\": \"%s\"%s}\n",
      what.op.c_str(), what.shape.c_str(), us, what.bytes / us / 1e6, what.flops / us / 1e6,
      std::max(read_us, matrix_us) / us, read_us >= matrix_us ? "read bandwidth" : "matrix rate", more.c_str());
  std::fflush(stdout);
}

}  // namespace inflight::bench

namespace {

using namespace inflight;

void run_families(const std::vector<std::string>& names) {
  const auto& all = bench::families();
  for (const std::string& name : names) {
    std::string known;
    for (const auto& family : all) known += " " + family.first;
    check(all.contains(name), ErrorCode::kNotFound, "no family ", name, "; there are:", known);
  }
  cuda::CudaContext context{cuda::CudaOptions{}};
  bench::Bench bench(context);
  for (const auto& [name, family] : all)
    if (names.empty() || std::find(names.begin(), names.end(), name) != names.end()) family(bench);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run_families({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_bench: %s\n", error.what());
    return 1;
  }
}
