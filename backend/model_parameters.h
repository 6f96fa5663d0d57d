#pragma once

#include <string>

#include "backend/model_config.h"
#include "inflight_batcher/api/executor_config.h"

namespace inflight::backend {

/// The `parameters` section of config.pbtxt, typed. Values left as an unfilled "${...}" or empty keep their default.
///
/// Beyond the keys of the replaced backend, these are ours (all optional):
///
/// | key                       | default      | meaning                                                            |
/// |---------------------------|--------------|--------------------------------------------------------------------|
/// | device                    | auto         | cpu, cuda or auto                                                  |
/// | tensor_parallel_size      | 1            | ranks that share every layer                                       |
/// | pipeline_parallel_size    | 1            | groups of ranks that own layer ranges                              |
/// | num_threads               | 0            | CPU worker threads of all ranks; 0 = the processors available      |
/// | max_batch_size            | 256          | sequences in flight (not the model's max_batch_size: rows a request)|
/// | max_num_tokens            | 2048         | tokens of one step                                                 |
/// | max_sequence_length       | the model's  | prompt + generated tokens                                          |
/// | kv_cache_block_size       | 32, GPU 64   | tokens of a KV block, a power of two                               |
/// | kv_cache_cpu_memory_bytes | 1 GiB        | CPU engine: the memory that the KV fraction is taken of            |
/// | plan_ahead                | on a GPU     | plan a step while the one before still runs                        |
/// | batch_invariant           | false        | GPU: the same tokens alone and in any company                      |
/// | random_weights            | false        | weights drawn at random: to measure speed without a checkpoint     |
/// | random_default_seed       | false        | a fresh seed for requests without one (false: seed 0)              |
struct ModelParameters {
  std::string engine_dir;
  ExecutorConfig executor;
  bool exclude_input_in_output = false;
  bool random_default_seed = false;
  int cancellation_check_period_ms = 20;
  int stats_check_period_ms = 100;
};

/// Throws kInvalidArgument for a value that cannot be read, kNotFound for a model path that does not exist and
/// kUnsupported for a feature that this version lacks. Unfilled and unknown keys are logged as warnings.
ModelParameters parse_parameters(const ModelConfig& config);

}  // namespace inflight::backend
