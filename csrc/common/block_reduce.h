// Sums over an image in a fixed order, in one launch: lanes of a warp by shuffles, warps of a block
// through shared memory, then the tiles' partial sums by the last block, which an atomic ticket
// tells. No float atomics: the same bits at every run.
#pragma once

#include "kernel.h"

namespace diffreg {

// Where tiles store their sums, and blocks take a ticket when they have.
struct Reduction {
  double* partials;   // (N, K, tiles)
  unsigned* tickets;  // (N), zeros: tiles that have stored theirs
};

// Doubles of workspace that K sums a tile need, tickets included.
inline int64_t reduction_doubles(int64_t samples, int64_t sums, int64_t tiles) {
  return samples * (sums * tiles + 1);
}

// A reduction in its workspace, with the tickets zeroed.
inline Reduction make_reduction(double* workspace, int64_t samples, int64_t sums, int64_t tiles,
                                void* stream) {
  double* tickets = workspace + samples * sums * tiles;
  zero(tickets, samples * sizeof(double), stream);
  return {workspace, reinterpret_cast<unsigned*>(tickets)};
}

struct Add {
  DIFFREG_DEVICE static double combine(double a, double b) { return a + b; }
};
// NaN counts as nothing.
struct Max {
  DIFFREG_DEVICE static double combine(double a, double b) { return b > a ? b : a; }
};

template <int K>
struct WarpValues {
  double of[K][kWarps];
};

// Combines a value of every thread of the block; thread 0 holds the K results.
template <int K, typename Combine = Add>
DIFFREG_DEVICE void reduce_block(double (&values)[K]) {
  using Values = WarpValues<K>;
  DIFFREG_SHARED(Values, warps);
  DIFFREG_UNROLL
  for (int k = 0; k < K; ++k) {
    for (int offset = 16; offset > 0; offset /= 2) {
      values[k] = Combine::combine(values[k], __shfl_down_sync(0xffffffffu, values[k], offset));
    }
  }
  __syncthreads();  // the last reduction's values have been read
  if (threadIdx.x == 0) {
    DIFFREG_UNROLL
    for (int k = 0; k < K; ++k) warps.of[k][threadIdx.y] = values[k];
  }
  __syncthreads();
  if (thread_index() != 0) return;
  DIFFREG_UNROLL
  for (int k = 0; k < K; ++k) {
    values[k] = warps.of[k][0];
    for (int warp = 1; warp < kWarps; ++warp) {
      values[k] = Combine::combine(values[k], warps.of[k][warp]);
    }
  }
}

// True for the last block of `blocks` to take a ticket, which then sees what the others stored.
DIFFREG_DEVICE bool is_last_block(unsigned* ticket, int64_t blocks) {
  DIFFREG_SHARED(bool, last);
  if (thread_index() == 0) {
    __threadfence();
    last = atomicAdd(ticket, 1u) == static_cast<unsigned>(blocks - 1);
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Thread 0 of a tile stores its K partial sums.
template <int K>
DIFFREG_DEVICE void store_partials(const Reduction& reduction, const double (&values)[K],
                                   int64_t sample, int64_t tile, int64_t tiles) {
  if (thread_index() != 0) return;
  DIFFREG_UNROLL
  for (int k = 0; k < K; ++k) {
    store(reduction.partials + (sample * K + k) * tiles + tile, values[k]);
  }
}

// This thread's part of a sum over the tiles of a sample: a block-stride loop.
template <typename Combine = Add>
DIFFREG_DEVICE double block_stride_reduce(const double* partials,  // (tiles)
                                          int64_t tiles) {
  double value = 0;
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    value = Combine::combine(value, load(partials + tile));
  }
  return value;
}

// Sums K values of every thread over all tiles of a sample: finish(sums) runs in one thread of the
// last block.
template <int K, typename Finish>
DIFFREG_DEVICE void reduce_tiles(const Reduction& reduction, double (&values)[K], int64_t sample,
                                 int64_t tile, int64_t tiles, const Finish& finish) {
  reduce_block(values);
  store_partials(reduction, values, sample, tile, tiles);
  if (!is_last_block(reduction.tickets + sample, tiles)) return;
  DIFFREG_UNROLL
  for (int k = 0; k < K; ++k) {
    values[k] = block_stride_reduce(reduction.partials + (sample * K + k) * tiles, tiles);
  }
  reduce_block(values);
  if (thread_index() == 0) finish(values);
}

}  // namespace diffreg
