// Packs of four voxels, a lane's share of a row, of which some may lie beside it.
#pragma once

#include "pack.h"

namespace diffreg {

constexpr int kQuad = 4;

template <typename S>
using Quad = Pack<S, kQuad>;

// Of rows of several images, the voxels from column x on that lie in columns [0, end), 0 for the
// others. With `whole` quads, x and end are multiples of four.
template <int count, typename S>
DIFFREG_DEVICE void load_quads(const S* const (&rows)[count], int32_t x, int32_t end, bool whole,
                               Quad<Arithmetic<S>> (&found)[count]) {
  for (Quad<Arithmetic<S>>& quad : found) quad = {};
  if (whole) {
    if (!inside(x, end)) return;
    for (int k = 0; k < count; ++k) found[k] = load_pack<kQuad>(rows[k] + x);
  } else {
    for (int j = 0; j < kQuad; ++j) {
      if (!inside(x + j, end)) continue;
      for (int k = 0; k < count; ++k) found[k].of[j] = load(rows[k] + x + j);
    }
  }
}

template <typename S>
DIFFREG_DEVICE Quad<Arithmetic<S>> load_quad(const S* row, int32_t x, int32_t end, bool whole) {
  Quad<Arithmetic<S>> found[1];
  load_quads({row}, x, end, whole, found);
  return found[0];
}

template <typename S>
DIFFREG_DEVICE void store_quad(S* row, int32_t x, int32_t end, bool whole,
                               const Quad<Arithmetic<S>>& values) {
  if (whole) {
    if (inside(x, end)) store_pack<kQuad>(row + x, values);
  } else {
    for (int j = 0; j < kQuad; ++j) {
      if (inside(x + j, end)) store(row + x + j, values.of[j]);
    }
  }
}

}  // namespace diffreg
