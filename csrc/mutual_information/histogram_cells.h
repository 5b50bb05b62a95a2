// CUDA only: a joint histogram that is counted in integers, whose sums do not depend on the order
// of the atomics.
//
// A tap of a window is rounded to a fixed point: to 2^-30 of the sample's largest weight where a
// block counts in shared memory, which float alone does, to 2^-60 in global memory. The word that
// it is added to overflows, and then the atomic's return says so, and the carry goes to another
// word: nothing is lost, however many voxels a bin has. 30 bits are as exact as a float's window
// where it matters, in bins that hold one small tap alone: there the gradient reads the logarithm
// of the tap, f^3 / 6, times f^2 / 2, and is 2e-5 off at the worst (1e-3 with the 17 bits for which
// a word would hold 2^15 voxels without a carry).
#pragma once

#include "../common/kernel.h"
#include "mutual_information.h"

namespace diffreg::mutual_information {

constexpr int kSharedCells = 4096;  // two words each: 32 KiB

using Word = unsigned long long;

// Two words a cell, the second what has overflown the first; a sample's cells side by side.
struct Counts {
  Word* low;          // (N, rows, columns)
  Word* high;         // (N, rows, columns)
  unsigned* unknown;  // (N): not 0 where a value that counts is not finite
};

// Adds to numbers of two words, `apart` from each other. What a word overflows by depends on the
// order, how often does not. All are asked for before the first is looked at.
template <int count, typename Low, typename High>
DIFFREG_DEVICE void add_with_carries(Low* low, High* high, int32_t apart,
                                     const Low (&values)[count]) {
  Low before[count];
#pragma unroll
  for (int k = 0; k < count; ++k) before[k] = atomicAdd(low + k * apart, values[k]);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    if (before[k] > static_cast<Low>(~values[k])) atomicAdd(high + k * apart, High{1});
  }
}

// A histogram in shared memory, as often as there is room: lanes that have the same intensities
// would wait for each other.
struct SharedCells {
  static constexpr int kBits = 30;
  struct Words {
    unsigned low[kSharedCells], high[kSharedCells];
  };
  Words& words;
  int32_t size, copies, copy;  // copy: this lane's

  DIFFREG_DEVICE SharedCells(Words& shared, int32_t cells)
      : words(shared), size(cells), copies(kSharedCells / cells) {
    copy = static_cast<int32_t>(threadIdx.x) % copies;
    for (int k = thread_index(); k < kSharedCells; k += kThreads) words.low[k] = words.high[k] = 0;
    __syncthreads();
  }
  DIFFREG_DEVICE void add(int32_t cell, const float (&taps)[kTaps]) {
    const int32_t at = cell * copies + copy;
    unsigned values[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      values[k] = static_cast<unsigned>(__float2int_rn(taps[k] * float(1 << kBits)));
    }
    add_with_carries(words.low + at, words.high + at, copies, values);
  }
  // Moves what was counted to a sample's cells.
  DIFFREG_DEVICE void flush(Word* low, Word* high) {
    __syncthreads();
    for (int32_t cell = thread_index(); cell < size; cell += kThreads) {
      Word count = 0;
      for (int32_t at = cell * copies; at < (cell + 1) * copies; ++at) {
        count += (Word{words.high[at]} << 32) + words.low[at];
        words.low[at] = words.high[at] = 0;
      }
      const Word values[] = {count};
      if (count != 0) add_with_carries(low + cell, high + cell, 0, values);
    }
    __syncthreads();
  }
};

DIFFREG_DEVICE long long rounded(float value) { return __float2ll_rn(value); }
DIFFREG_DEVICE long long rounded(double value) { return __double2ll_rn(value); }

// A sample's cells in global memory.
struct GlobalCells {
  static constexpr int kBits = 60;
  Word *low, *high;

  template <typename T>
  DIFFREG_DEVICE void add(int32_t cell, const T (&taps)[kTaps]) {
    Word values[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      values[k] = static_cast<Word>(rounded(taps[k] * T(int64_t{1} << kBits)));
    }
    add_with_carries(low + cell, high + cell, 1, values);
  }
};

}  // namespace diffreg::mutual_information
