// Image gradients of a lane's column, and their adjoint, row after row as a march comes down them
// (columns.h).
#pragma once

#include "central_difference.h"
#include "columns.h"

namespace diffreg {

// A row's gradient reads the rows beside it; its adjoint reads the gradients beside it, too.
using GradientStrips = Strips<1, 1, 0>;
using AdjointStrips = Strips<2, 2, 2>;

// Both derivatives at a lane's voxel. Beyond an image its border repeats, so that a central
// difference needs no case of its own there.
template <typename T>
DIFFREG_DEVICE void image_gradient(T above, T here, T below, T* g) {
  g[0] = central_difference(above, below);
  g[1] = central_difference(shuffle_from_left(here), shuffle_from_right(here));
}

// A mask's column: 1 everywhere without a mask.
template <typename T>
struct MaskColumn {
  Column<T> weights;

  DIFFREG_DEVICE MaskColumn(const T* mask, int64_t n, int32_t height, int32_t width, int32_t x)
      : weights(mask ? mask + n * height * width : nullptr, height, width, x) {}

  DIFFREG_DEVICE T at(int32_t y, bool inner = false) const {
    return weights.top ? weights.at(y, inner) : 1;
  }
};

// Which of the last rows of a column hide their voxel: bit 0 is that of the last one. In one
// register, which three flags would not be.
struct HiddenRows {
  uint32_t bits = 0;

  template <typename T>
  DIFFREG_DEVICE void move_down(T value, T weight) {
    bits = bits << 1 | (hidden(value, weight) ? 1u : 0u);
  }
  DIFFREG_DEVICE bool above() const { return bits & 4; }
};

// The image gradient's adjoint: minus the central difference of the gradient p to the derivatives,
// where p goes on beyond the image with its sign changed.
template <typename T>
struct Adjoint {
  T before = 0, last = 0;  // p[0] two rows up, and one
  T along = 0;             // what p[1] gave a row up

  // Moves on by p of row y; returns the image's gradient in the row above.
  DIFFREG_DEVICE T advance(int32_t y, int32_t x, int32_t height, int32_t width, bool inner,
                           const T* p) {
    const bool has_left = inside(x - 1, width), has_right = inside(x + 1, width);
    const T left = shuffle_from_left(p[1]), right = shuffle_from_right(p[1]);
    T now = p[0];
    if (!inner && y == 0) last = -now;
    if (!inner && y == height) now = -last;
    const T sum = along - central_difference(before, now);
    along = -central_difference(has_left ? left : -p[1], has_right ? right : -p[1]);
    before = last;
    last = now;
    return sum;
  }
};

}  // namespace diffreg
