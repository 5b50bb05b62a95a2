// CUDA only: the stencils of the energies at a lane's voxel, layer after layer of a march
// (columns.h), their squares and their gradient.
#pragma once

#include "../common/cell_columns.h"
#include "deformation_energy_cuda.h"

namespace diffreg::deformation_energy {

// Which stencils there are at a lane's voxel: whether the image has a voxel before and after it
// along an axis, both, and both beside the next one. Along the first axis that changes; of the
// others it is kept in one register, which as many flags would not be.
template <int D>
class Reach {
 public:
  DIFFREG_DEVICE Reach(const Extent<D>& extent, const Across<D>& across) {
    for (int k = 1; k < D; ++k) {
      const int32_t at = across.at[k - 1], size = extent.size[k];
      set(k, kPrevious, inside(at - 1, size - 1));
      set(k, kNext, inside(at, size - 1));
      set(k, kCentred, inside(at - 1, size - 2));
      set(k, kNextCentred, inside(at, size - 2));
    }
  }
  // At a layer, which has both beside it, and so has the next one, where `inner` says so.
  DIFFREG_DEVICE void move_to(int32_t z, int32_t layers, bool inner) {
    next_layer_ = inner || inside(z, layers - 1);
    next_layer_centred_ = inner || inside(z, layers - 2);
  }

  DIFFREG_DEVICE bool previous(int axis) const { return has(axis, kPrevious); }
  DIFFREG_DEVICE bool next(int axis) const { return axis == 0 ? next_layer_ : has(axis, kNext); }
  DIFFREG_DEVICE bool centred(int axis) const { return has(axis, kCentred); }
  DIFFREG_DEVICE bool next_centred(int axis) const {
    return axis == 0 ? next_layer_centred_ : has(axis, kNextCentred);
  }
  DIFFREG_DEVICE bool has_cell() const {
    bool all = true;
    for (int k = 0; k < D; ++k) all &= next(k);
    return all;
  }

 private:
  enum Flag { kPrevious, kNext, kCentred, kNextCentred, kFlags };
  DIFFREG_DEVICE void set(int axis, Flag flag, bool value) {
    bits_ |= uint32_t{value} << (axis * kFlags + flag);
  }
  DIFFREG_DEVICE bool has(int axis, Flag flag) const { return bits_ >> (axis * kFlags + flag) & 1; }

  uint32_t bits_ = 0;
  bool next_layer_ = false, next_layer_centred_ = false;
};

// A column of a field, and in a volume the rows around it.
template <int D, typename S>
struct Surroundings {
  using T = Arithmetic<S>;
  FieldColumn<D, S> field;
  int32_t width;

  DIFFREG_DEVICE Surroundings(const S* displacement, int64_t n, const Extent<D>& extent,
                              const Across<D>& across)
      : field(displacement, n, extent, across), width(extent.width()) {}

  // What is read at layer z: the voxel two layers on and, in a volume, that of the row after in the
  // next layer, and those of the row before and of two rows after in this one; of the rows that the
  // image has not, some other.
  struct Layer {
    Components<D, T> ahead, after{}, before{}, two_after{};
  };
  DIFFREG_DEVICE Layer at(const Reach<D>& reach, int32_t z, bool inner) const {
    Layer layer{field.at(z + 2, inner)};
    if constexpr (D == 3) {
      layer.after = field.beside(after(reach), z + 1, inner);
      layer.before = field.beside(reach.previous(1) ? -width : 0, z, inner);
      layer.two_after = field.beside(reach.next_centred(1) ? 2 * width : 0, z, inner);
    }
    return layer;
  }
  // Both rows of the face at layer z.
  DIFFREG_DEVICE FieldRows<D, T> face(const Reach<D>& reach, int32_t z) const {
    FieldRows<D, T> rows;
    rows.row[0] = field.at(z);
    if constexpr (D == 3) rows.row[1] = field.beside(after(reach), z);
    return rows;
  }

 private:
  DIFFREG_DEVICE int32_t after(const Reach<D>& reach) const { return reach.next(1) ? width : 0; }
};

// The differences of one component at a lane's voxel, 0 where there is no such stencil: first ones
// to the next voxel, second ones centred on it and on the next, mixed ones that start at it and,
// for what flows along their second axis, at the voxel before along their first.
template <int D, typename T>
struct Differences {
  T first[D], second[D], next_second[D], mixed[kPairs<D>], mixed_before[kPairs<D>];
};

// The rolling window: the faces of this layer and the next, and what the last layer had.
template <int D, typename S, typename T = Arithmetic<S>>
class Window {
 public:
  using Layer = typename Surroundings<D, S>::Layer;

  // At layer z, which may be the one before the image's first.
  DIFFREG_DEVICE Window(const Surroundings<D, S>& field, const Reach<D>& reach, int32_t z,
                        int32_t layers)
      : next_(field.face(reach, z)), ahead_(field.field.at(z + 1)) {
    const Components<D, T> before = field.field.at(z - 1);
    for (int c = 0; c < D; ++c) {
      const T second = second_difference(before.of[c], next_.u[0][c], ahead_.of[c]);
      second_[c] = inside(z - 1, layers - 2) ? second : T(0);
    }
  }

  // Moves on to the layer of which that was read.
  DIFFREG_DEVICE void move_on(const Layer& layer) {
    here_ = next_;
    FieldRows<D, T> rows;
    rows.row[0] = ahead_;
    if constexpr (D == 3) rows.row[1] = layer.after;
    next_ = Face<D, T>(rows);
    ahead_ = layer.ahead;
    layer_ = layer;
  }

  DIFFREG_DEVICE Cell<D, T> cell() const { return cell_of(here_, next_); }

  // Those of component c, once a layer.
  DIFFREG_DEVICE Differences<D, T> differences(const Reach<D>& reach, int c) {
    const auto u = [&](int f) { return here_.u[f][c]; };
    const auto v = [&](int f) { return next_.u[f][c]; };
    Differences<D, T> d;
    d.first[0] = if_there(reach.next(0), v(0) - u(0));
    d.second[0] = second_[c];
    const T next_second = second_difference(u(0), v(0), ahead_.of[c]);
    second_[c] = d.next_second[0] = if_there(reach.next_centred(0), next_second);
    for (int k = 1; k < D; ++k) {
      const int f = 1 << (k - 1);
      d.first[k] = if_there(reach.next(k), u(f) - u(0));
      d.mixed_before[k - 1] = mixed_[k - 1][c];
      mixed_[k - 1][c] = d.mixed[k - 1] =
          if_there(reach.next(0) && reach.next(k), mixed_difference(u(0), u(f), v(0), v(f)));
    }
    if constexpr (D == 3) add_rows(reach, c, d);
    const T around = second_difference(shuffle_from_left(u(0)), u(0), u(1 << (D - 2)));
    d.second[D - 1] = if_there(reach.centred(D - 1), around);
    d.next_second[D - 1] = shuffle_from_right(d.second[D - 1]);
    return d;
  }

 private:
  DIFFREG_DEVICE static T if_there(bool there, T value) { return there ? value : T(0); }

  // Those along the rows of a volume's plane, and across rows and columns.
  DIFFREG_DEVICE void add_rows(const Reach<D>& reach, int c, Differences<D, T>& d) const {
    const auto u = [&](int f) { return here_.u[f][c]; };
    const T before = layer_.before.of[c], two_after = layer_.two_after.of[c];
    d.second[1] = if_there(reach.centred(1), second_difference(before, u(0), u(1)));
    d.next_second[1] = if_there(reach.next_centred(1), second_difference(u(0), u(1), two_after));
    d.mixed[2] = if_there(reach.next(1) && reach.next(2), mixed_difference(u(0), u(2), u(1), u(3)));
    d.mixed_before[2] = if_there(reach.previous(1) && reach.next(2),
                                 mixed_difference(before, shuffle_from_right(before), u(0), u(2)));
  }

  Face<D, T> here_ = {}, next_;
  Components<D, T> ahead_;
  Layer layer_ = {};
  T second_[D], mixed_[D - 1][D] = {};
};

}  // namespace diffreg::deformation_energy
