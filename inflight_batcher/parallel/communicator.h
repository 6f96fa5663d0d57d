#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "inflight/tensor.h"

namespace inflight {

/// Collective operations among the ranks of one group. Every rank calls the same operations in the same order; results
/// do not depend on timing. A rank that fails calls abort(), which makes the others throw instead of waiting for ever.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Sum over the ranks, in place; the same bits on every rank (terms are added in rank order).
  virtual void all_reduce(TensorView tensor) = 0;

  /// out[i] = in of rank 0, rank 1, ... end to end along the last dimension; widths may differ by rank.
  virtual void all_gather(TensorView in, TensorView out) = 0;

  /// Hands a tensor to another rank; the receiver's view has the same shape. Sends to one rank arrive in order. A send
  /// returns once the tensor may be overwritten; it waits when the receiver is too many tensors behind.
  virtual void send(TensorView tensor, int to) = 0;
  virtual void receive(TensorView tensor, int from) = 0;

  virtual void abort() = 0;
};

/// How ranks are laid out: rank = stage · tensor_parallel + tensor-parallel rank.
struct Topology {
  int tensor_parallel = 1;
  int pipeline_parallel = 1;

  int num_ranks() const { return tensor_parallel * pipeline_parallel; }
  int stage_of(int rank) const { return rank / tensor_parallel; }
  int tp_rank_of(int rank) const { return rank % tensor_parallel; }

  /// Layers [first, last) of a stage; the first stages have one more when they do not divide evenly.
  std::pair<int, int> layers_of(int stage, int num_layers) const;
};

/// Ranks that are threads of one process and tensors in host memory: the CPU engine's communicator.
/// `reset` makes a group usable again after an abort, once no rank is inside an operation.
class ThreadGroup {
 public:
  explicit ThreadGroup(int size);
  ~ThreadGroup();
  Communicator& at(int rank);
  void abort();
  void reset();

 private:
  struct Shared;
  class Member;
  std::unique_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Member>> members_;
};

}  // namespace inflight
