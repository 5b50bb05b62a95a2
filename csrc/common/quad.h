// Four voxels side by side, a lane's share of a row: 16 bytes of floats in one access.
#pragma once

#include "kernel.h"

namespace diffreg {

constexpr int kQuad = 4;

template <typename S>
struct alignas(sizeof(S) < 8 ? kQuad * sizeof(S) : 16) Quad {
  S of[kQuad];
};

// Whether rows of that width, of an image there (or nowhere), consist of aligned quads.
template <typename S>
bool holds_quads(const S* image, int64_t width) {
  return width % kQuad == 0 && reinterpret_cast<uintptr_t>(image) % alignof(Quad<S>) == 0;
}

// Of rows of several images, the voxels from column x on that lie in columns [0, end), 0 for the
// others. With `whole` quads, x and end are multiples of four.
template <int count, typename S>
DIFFREG_DEVICE void load_quads(const S* const (&rows)[count], int32_t x, int32_t end, bool whole,
                               Quad<Arithmetic<S>> (&found)[count]) {
  for (Quad<Arithmetic<S>>& quad : found) quad = {};
  if (whole) {
    if (!inside(x, end)) return;
    for (int k = 0; k < count; ++k) {
      const Quad<S> stored = load_raw(reinterpret_cast<const Quad<S>*>(rows[k] + x));
      for (int j = 0; j < kQuad; ++j) found[k].of[j] = static_cast<Arithmetic<S>>(stored.of[j]);
    }
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
    if (!inside(x, end)) return;
    Quad<S> stored;
    for (int j = 0; j < kQuad; ++j) stored.of[j] = static_cast<S>(values.of[j]);
    store_raw(reinterpret_cast<Quad<S>*>(row + x), stored);
  } else {
    for (int j = 0; j < kQuad; ++j) {
      if (inside(x + j, end)) store(row + x + j, values.of[j]);
    }
  }
}

}  // namespace diffreg
