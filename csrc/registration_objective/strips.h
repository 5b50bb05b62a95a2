// CUDA only: the strips that warps march down, and what their lanes need to know.
#pragma once

#include "../common/shuffle.h"
#include "registration_objective_cuda.h"

namespace diffreg::registration_objective {

// Strips of columns and rows, a warp each, and in a tile those of a block. Their halo, for the
// stencils' sake: that many lanes at both ends of a warp, and rows before and behind a strip.
template <int halo>
struct Strips {
  static constexpr int32_t kOwned = 32 - 2 * halo;
  int64_t samples;
  int32_t height, width, rows;

  struct Place {
    int32_t x, y, end;  // first column, rows y .. end - 1
  };

  DIFFREG_HD int64_t across() const { return (width + kOwned - 1) / kOwned; }
  DIFFREG_HD int64_t per_sample() const { return across() * ((height + rows - 1) / rows); }
  DIFFREG_HD int64_t tiles() const { return (per_sample() + kWarps - 1) / kWarps; }
  DIFFREG_HD Place place(int64_t strip) const {
    const int32_t y = static_cast<int32_t>(strip / across()) * rows;
    const int32_t x = static_cast<int32_t>(strip % across()) * kOwned;
    return {x, y, y + rows < height ? y + rows : height};
  }
};

// Short strips where there are few, long ones where they keep a large GPU busy: a strip pays for
// the rows beside it.
template <int halo>
Strips<halo> choose_strips(const Problem& problem) {
  constexpr int64_t kEnough = 2048;
  Strips<halo> strips{problem.samples, problem.to[0], problem.to[1], 64};
  while (strips.rows > 8 && strips.samples * strips.per_sample() < kEnough) strips.rows /= 2;
  return strips;
}

// What a kernel is told beside the tensors, in the arithmetic's type.
template <typename T>
struct Setup {
  Problem problem;
  deformation_energy::Slopes<D, T> factor;  // of half the squares: those of the differences
  T mixture[kMeasures], threshold;
  bool energies, level_sets;
};

template <typename T>
Setup<T> setup_of(const Problem& problem, bool energies) {
  Setup<T> setup{problem,  deformation_energy::Slopes<D, T>(problem.factor, 0.5, 0.5, 1),
                 {},       static_cast<T>(problem.threshold),
                 energies, false};
  for (int k = 0; k < kMeasures; ++k) setup.mixture[k] = static_cast<T>(problem.mixture[k]);
  for (int k : {kPls, kSmoothPls, kNgf}) setup.level_sets |= problem.mixture[k] != 0;
  return setup;
}

// What is the same for all voxels of a sample, in shared memory: registers decide how many blocks
// are resident.
template <typename T>
struct Sample {
  bool measured;  // its images are read
  T eps_moving, eps_fixed;
  T diffusion, bending, determinant;  // upstream gradients, twice those of squares
  T measures;                         // over the weights and channels
  // Of the correlation: other (b - a) + rest b - offset, which is 0 for equal images. b and a are
  // taken about rounded means; the offset takes off again what that leaves.
  T mean_warped, mean_fixed, other, rest, offset;
};

// A value in shared memory, loaded again wherever it is used (volatile): it takes no register.
template <typename T>
DIFFREG_DEVICE T reload(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

// The row that a warp has come to, and the lane's column.
struct Position {
  int32_t y, x;
  bool inside;           // the column is one of the image's
  bool has_cell, bends;  // so is the one to its right, so are both beside it
  bool owned;            // and the lane's to sum and to store
};

}  // namespace diffreg::registration_objective
