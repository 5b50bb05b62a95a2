// CUDA only: what a march sums over windows: the products of both images, and the terms that the
// windows' gradients consist of.
#pragma once

#include "box_march.h"

namespace diffreg::local_correlation {

constexpr int kParts = 3;  // terms of a window that its gradient to one image needs

// One channel of both images, and the mask's weights.
template <typename S>
struct PairPlane {
  using T = Arithmetic<S>;
  const S* own;
  const S* other;
  const T* mask;  // or null
  int32_t width;
  bool whole;  // rows consist of aligned quads

  // Voxels of both, as the measure reads them.
  struct Voxels {
    Quad<T> of[2];      // own, other
    bool hides[kQuad];  // what the mask leaves out of the own image
  };

  DIFFREG_DEVICE PairPlane(const Problem& problem, const Images<S>& images, int64_t plane,
                           bool whole)
      : own(images.own + plane * problem.voxels()),
        other(images.other + plane * problem.voxels()),
        mask(images.mask ? images.mask + plane / problem.channels * problem.voxels() : nullptr),
        width(problem.width),
        whole(whole) {}

  DIFFREG_DEVICE Quad<T> weights(int64_t row, int32_t x, int32_t end, bool quads) const {
    return mask ? load_quad(mask + row, x, end, quads) : Quad<T>{{1, 1, 1, 1}};
  }

  DIFFREG_DEVICE Voxels read(int64_t row, int32_t x, int32_t end, bool quads) const {
    Voxels voxels{};
    load_quads({own + row, other + row}, x, end, quads, voxels.of);
    if (!mask) return voxels;
    const Quad<T> weight = weights(row, x, end, quads);
    for (int j = 0; j < kQuad; ++j) {
      voxels.hides[j] = hidden(voxels.of[0].of[j], weight.of[j]);
      for (Quad<T>& image : voxels.of) image.of[j] = visible(image.of[j], weight.of[j]);
    }
    return voxels;
  }

  DIFFREG_DEVICE static Terms<kTerms> terms(const Voxels& voxels) {
    Terms<kTerms> found;
    for (int j = 0; j < kQuad; ++j) {
      double terms[kTerms];
      image_terms(voxels.of[0].of[j], voxels.of[1].of[j], terms);
      for (int k = 0; k < kTerms; ++k) found.of[k][j] = terms[k];
    }
    return found;
  }

  // What rows of several planes change of the sums down the columns.
  struct Change {
    Terms<kTerms>& columns;

    DIFFREG_DEVICE explicit Change(Terms<kTerms>& columns) : columns(columns) {}
    DIFFREG_DEVICE void enter(const Voxels& voxels) { columns.add(terms(voxels), 1); }
    DIFFREG_DEVICE void leave(const Voxels& voxels) { columns.add(terms(voxels), -1); }
    DIFFREG_DEVICE void finish() {}
  };
};

// What windows_kernel stored of one channel.
template <typename T>
struct WindowTerms {
  const T* stored[kParts];  // *S each
  int32_t width;
  bool whole;

  DIFFREG_DEVICE WindowTerms(const T* terms,  // (kParts, *S)
                             const Problem& problem, bool whole)
      : width(problem.width), whole(whole) {
    for (int k = 0; k < kParts; ++k) stored[k] = kept(terms + k * problem.voxels());
  }

  struct Voxels {
    Quad<T> of[kParts];
  };

  DIFFREG_DEVICE Voxels read(int64_t row, int32_t x, int32_t end, bool quads) const {
    Voxels found;
    load_quads({stored[0] + row, stored[1] + row, stored[2] + row}, x, end, quads, found.of);
    return found;
  }

  DIFFREG_DEVICE static Terms<kParts> terms(const Voxels& voxels) {
    Terms<kParts> found;
    for (int k = 0; k < kParts; ++k) {
      for (int j = 0; j < kQuad; ++j) found.of[k][j] = voxels.of[k].of[j];
    }
    return found;
  }

  // Summed as they are stored, the planes of a row in the same order when it enters and leaves: in
  // double, each would have to be converted.
  struct Change {
    Terms<kParts>& columns;
    Voxels entered{}, left{};

    DIFFREG_DEVICE explicit Change(Terms<kParts>& columns) : columns(columns) {}
    DIFFREG_DEVICE void enter(const Voxels& voxels) { add(entered, voxels); }
    DIFFREG_DEVICE void leave(const Voxels& voxels) { add(left, voxels); }
    DIFFREG_DEVICE void finish() {
      columns.add(terms(entered), 1);
      columns.add(terms(left), -1);
    }
    DIFFREG_DEVICE static void add(Voxels& sum, const Voxels& voxels) {
      for (int k = 0; k < kParts; ++k) {
        for (int j = 0; j < kQuad; ++j) sum.of[k].of[j] += voxels.of[k].of[j];
      }
    }
  };
};

}  // namespace diffreg::local_correlation
