// Sums over an image in a fixed order: lanes of a warp, warps of a block, then the tiles of a
// sample, by whichever block comes last. No float atomics: the same bits at every run.
#pragma once

#include "kernel.h"

namespace diffreg {

// Where tiles leave their sums.
struct Reduction {
  double* partials;  // (N, K, tiles)
  unsigned* done;    // (N), zeros: tiles that have left theirs
};

// Doubles of workspace that K sums a tile need, counters included.
inline int64_t reduction_doubles(int64_t samples, int64_t sums, int64_t tiles) {
  return samples * (sums * tiles + 1);
}

// Lays a reduction over its workspace, and zeroes the counters.
inline Reduction make_reduction(double* workspace, int64_t samples, int64_t sums, int64_t tiles,
                                void* stream) {
  double* counters = workspace + samples * sums * tiles;
  zero(counters, samples * sizeof(double), stream);
  return {workspace, reinterpret_cast<unsigned*>(counters)};
}

struct Add {
  DIFFREG_DEVICE static double combine(double a, double b) { return a + b; }
};
// NaN counts as nothing.
struct Largest {
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
  for (int k = 0; k < K; ++k) {
    for (int offset = 16; offset > 0; offset /= 2) {
      values[k] = Combine::combine(values[k], __shfl_down_sync(0xffffffffu, values[k], offset));
    }
  }
  __syncthreads();  // the last reduction's values have been read
  if (threadIdx.x == 0) {
    for (int k = 0; k < K; ++k) warps.of[k][threadIdx.y] = values[k];
  }
  __syncthreads();
  if (thread_index() != 0) return;
  for (int k = 0; k < K; ++k) {
    values[k] = warps.of[k][0];
    for (int warp = 1; warp < kWarps; ++warp) {
      values[k] = Combine::combine(values[k], warps.of[k][warp]);
    }
  }
}

// True for the block that comes last of `total`, which then sees what the others stored.
DIFFREG_DEVICE bool comes_last(unsigned* done, int64_t total) {
  DIFFREG_SHARED(bool, last);
  if (thread_index() == 0) {
    __threadfence();
    last = atomicAdd(done, 1u) == static_cast<unsigned>(total - 1);
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Thread 0 of a tile leaves its K values.
template <int K>
DIFFREG_DEVICE void leave(const Reduction& reduction, const double (&values)[K], int64_t sample,
                          int64_t tile, int64_t tiles) {
  if (thread_index() != 0) return;
  for (int k = 0; k < K; ++k) {
    store(reduction.partials + (sample * K + k) * tiles + tile, values[k]);
  }
}

// What this thread takes of a sum over the tiles of a sample.
template <typename Combine = Add>
DIFFREG_DEVICE double strided(const double* partials,  // (tiles)
                              int64_t tiles) {
  double value = 0;
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    value = Combine::combine(value, load(partials + tile));
  }
  return value;
}

// Sums K values of every thread over all tiles of a sample: finish(sums) runs in one thread of the
// block that comes last.
template <int K, typename Finish>
DIFFREG_DEVICE void reduce_tiles(const Reduction& reduction, double (&values)[K], int64_t sample,
                                 int64_t tile, int64_t tiles, const Finish& finish) {
  reduce_block(values);
  leave(reduction, values, sample, tile, tiles);
  if (!comes_last(reduction.done + sample, tiles)) return;
  for (int k = 0; k < K; ++k) {
    values[k] = strided(reduction.partials + (sample * K + k) * tiles, tiles);
  }
  reduce_block(values);
  if (thread_index() == 0) finish(values);
}

}  // namespace diffreg
