// What the rows beside a lane's row hold, in the tile of a volume that a block works on: a warp is
// a row, and what it hands on goes through shared memory. Every thread of the block takes part.
#pragma once

#include <type_traits>

#include "kernel.h"

namespace diffreg {

// Two buffers by turns: with the one barrier of a turn, nobody writes what another still reads.
template <int K, typename T>
class RowExchange {
 public:
  // Its barrier parts it from the exchange of the tile before, whose last turn may have been the
  // same.
  DIFFREG_DEVICE RowExchange() { __syncthreads(); }

  // Hands on K values, and takes those of the rows before and after.
  DIFFREG_DEVICE void operator()(const T* values, T* before, T* after) {
    put(values);
    take(-1, before);
    take(1, after);
  }
  // Takes those of the row before only.
  DIFFREG_DEVICE void operator()(const T* values, T* before) {
    put(values);
    take(-1, before);
  }

 private:
  struct Buffers {
    T of[2][K][kRows][kColumns];
  };
  DIFFREG_DEVICE static Buffers& buffers() {
    DIFFREG_SHARED(Buffers, shared);
    return shared;
  }

  DIFFREG_DEVICE void put(const T* values) {
    turn_ ^= 1;
    for (int k = 0; k < K; ++k) buffers().of[turn_][k][threadIdx.y][threadIdx.x] = values[k];
    __syncthreads();
  }
  // Beyond the tile, a row gets its own values back.
  DIFFREG_DEVICE void take(int by, T* values) const {
    const unsigned there = threadIdx.y + by, row = there < kRows ? there : threadIdx.y;
    for (int k = 0; k < K; ++k) values[k] = buffers().of[turn_][k][row][threadIdx.x];
  }

  int turn_ = 0;
};

// Where there are no rows beside: in an image the marching lanes need none.
struct NoExchange {};
template <int D, int K, typename T>
using ExchangeOf = std::conditional_t<D == 3, RowExchange<K, T>, NoExchange>;

}  // namespace diffreg
