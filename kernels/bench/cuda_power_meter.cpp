#include "kernels/bench/cuda_power_meter.h"

#include <dlfcn.h>

#include <array>

#include "kernels/cuda/check.h"

namespace inflight::bench {
namespace {

constexpr int kSmClock = 1;  // NVML_CLOCK_SM

void check_nvml(int status, const char* what) {
  check(status == 0, ErrorCode::kUnavailable, "NVML: ", what, ": error ", status);
}

template <typename Function>
void load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  check(function != nullptr, ErrorCode::kUnavailable, "NVML has no ", name);
}

}  // namespace

PowerMeter::PowerMeter(cuda::CudaContext& context) {
  void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  check(library != nullptr, ErrorCode::kUnavailable, "no NVML to read the GPU's power from: ", dlerror());
  int (*init)() = nullptr;
  int (*find)(const char*, void**) = nullptr;
  load(library, "nvmlInit_v2", init);
  load(library, "nvmlDeviceGetHandleByPciBusId_v2", find);
  load(library, "nvmlDeviceGetTotalEnergyConsumption", total_energy_);
  load(library, "nvmlDeviceGetClockInfo", clock_);
  check_nvml(init(), "no start");
  std::array<char, 32> bus_id{};
  cuda::check_cuda(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), context.options().device), "the GPU's address");
  check_nvml(find(bus_id.data(), &device_), "no such GPU");
}

void PowerMeter::start() { start_ = next_move(); }

PowerMeter::Reading PowerMeter::read() const {
  Reading reading{};
  const Mark end = next_move();
  const double seconds = std::chrono::duration<double>(end.time - start_.time).count();
  reading.watts = static_cast<double>(end.millijoules - start_.millijoules) * 1e-3 / seconds;
  check_nvml(clock_(device_, kSmClock, &reading.sm_mhz), "no clock");
  return reading;
}

PowerMeter::Mark PowerMeter::look() const {
  Mark mark;
  check_nvml(total_energy_(device_, &mark.millijoules), "no energy");
  mark.time = std::chrono::steady_clock::now();
  return mark;
}

// The counter's next value as it appears; the present one where it does not move.
PowerMeter::Mark PowerMeter::next_move() const {
  const Mark first = look();
  Mark mark = first;
  while (mark.millijoules == first.millijoules &&
         std::chrono::duration<double>(mark.time - first.time).count() < kMostSecondsOfReading)
    mark = look();
  return mark;
}

}  // namespace inflight::bench
