// W(p) = moving(p + u(p)): where one coordinate falls, and the tensor product over the D axes, for
// the value, both gradients and the nearest-neighbour variant.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"
#include "../common/options.h"

namespace diffreg::warp {

enum class Padding { border, zeros, reflection };
constexpr Named<Padding> kPaddings[] = {
    {"border", Padding::border}, {"zeros", Padding::zeros}, {"reflection", Padding::reflection}};
enum class Interpolation { linear, nearest, cubic };
constexpr Named<Interpolation> kInterpolations[] = {{"linear", Interpolation::linear},
                                                    {"nearest", Interpolation::nearest},
                                                    {"cubic", Interpolation::cubic}};

// Calls run(padding) with the padding as a type.
template <typename Run>
void dispatch_padding(Padding padding, const Run& run) {
  dispatch_value<Padding::border, Padding::zeros, Padding::reflection>(padding, run);
}

struct Sampling {
  Interpolation interpolation;
  Padding padding;
};

// What a voxel's upstream gradient passes on through a derivative. A gradient of 0 passes nothing
// on, not even NaN: what a mask takes out of a loss leaves no trace.
template <typename T>
DIFFREG_HD T passed_on(T upstream, T derivative) {
  return unless_zero(upstream, upstream * derivative, T(0));
}

// The two voxels of one axis beside a coordinate, with the weights of a convex combination and the
// weights' derivatives. Both indices always lie inside the axis; a voxel that is outside has weight
// 0.
template <typename T>
struct Neighbours {
  int32_t low, high;
  T low_weight, high_weight;
  T low_slope, high_slope;

  // A voxel of weight 0 does not count, so that warp(I, 0) is I to the bit: x + -0 is x. The low
  // one has none under zeros alone: else the caller may say that it `counts`.
  template <bool counts = false>
  DIFFREG_HD T interpolate(T at_low, T at_high) const {
    if constexpr (!counts) at_low = unless_zero(low_weight, at_low, T(0));
    return low_weight * at_low + high_weight * unless_zero(high_weight, at_high, -T(0));
  }
  DIFFREG_HD T differentiate(T at_low, T at_high) const {
    return low_slope * unless_zero(low_slope, at_low, T(0)) +
           high_slope * unless_zero(high_slope, at_high, T(0));
  }
};

// 0 for a finite component of a displacement, else NaN. What the components of one point give is
// summed and, as `bad`, added to the weights and slopes of every axis: it reaches value and
// gradients wherever the point lies along the other axes.
template <typename T>
DIFFREG_HD T poison(T component) {
  return component - component;
}

// A coordinate mirrored about the outer voxel centres until it lies in the image, and the sign that
// the mirrors give a derivative. An axis of one voxel is that voxel.
template <typename T>
struct Mirrored {
  T coordinate, sign;

  DIFFREG_HD Mirrored(T outside, T last) {
    const T period = last > 0 ? 2 * last : T(1);
    const T turns = std::floor(quotient(outside, period));
    const T within = outside - period * turns;
    const bool back = within > last;
    coordinate = back ? period - within : within;
    // Rounding may lead a little beyond; a coordinate that is not finite is clamped later.
    coordinate = unless_zero(last, coordinate > 0 ? coordinate : T(0), T(0));
    sign = back ? T(-1) : T(1);
  }
};

// The voxel behind one, if there is one: a minimum where that is an instruction.
DIFFREG_HD int32_t next_of(int32_t index, int32_t size) {
#ifdef __CUDA_ARCH__
  return min(index + 1, size - 1);
#else
  return index + (index + 1 < size);
#endif
}

// Without branches, so that loops over it are vectorised. Sizes are below 2^30.
template <typename T>
DIFFREG_HD Neighbours<T> linear(T coordinate, T bad, int32_t size, Padding padding) {
  const T last = static_cast<T>(size - 1);
  if (padding != Padding::zeros) {
    T sign = 1;
    if (padding == Padding::reflection) {
      const Mirrored<T> mirrored(coordinate, last);
      coordinate = mirrored.coordinate;
      sign = mirrored.sign;
    }
    // Constant beyond the outermost voxel centres, hence no slope there, nor on them.
    // No && here, nor below: a branch in 3-D is one too many for GCC to vectorise the loop.
    const T slope = sign * (((coordinate > 0) & (coordinate < last)) ? T(1) : T(0)) + bad;
    const T raised = coordinate > 0 ? coordinate : T(0);
    const T inside = smaller(raised, last);
    const int32_t low = static_cast<int32_t>(inside);
    const T fraction = inside - static_cast<T>(low) + bad;
    return {low, next_of(low, size), 1 - fraction, fraction, -slope, slope};
  }
  // One voxel beyond the image everything is 0; clamping there makes the cast safe.
  const bool near = (coordinate >= -1) & (coordinate < last + 1);
  const T inside = near ? coordinate : T(-1);
  const int32_t truncated = static_cast<int32_t>(inside);
  const int32_t low = truncated - (static_cast<T>(truncated) > inside);
  const T fraction = inside - static_cast<T>(low) + bad;
  const T has_low = static_cast<T>(near & (low >= 0)) + bad;
  const T has_high = static_cast<T>(near & (low + 1 < size)) + bad;
  return {low >= 0 ? low : 0,  next_of(low, size), has_low * (1 - fraction),
          has_high * fraction, -has_low,           has_high};
}

// floor(coordinate + 1/2); constant almost everywhere, hence without slope.
template <typename T>
DIFFREG_HD Neighbours<T> nearest(T coordinate, T bad, int32_t size, Padding padding) {
  const T last = static_cast<T>(size - 1);
  const T mirrored =
      padding == Padding::reflection ? Mirrored<T>(coordinate, last).coordinate : coordinate;
  const T rounded = std::floor(mirrored + T(0.5));
  const T raised = rounded > 0 ? rounded : T(0);
  const T inside = smaller(raised, last);
  const int32_t index = static_cast<int32_t>(inside);
  const T weight = (padding != Padding::zeros || inside == rounded ? T(1) : T(0)) + bad;
  return {index, index, weight, bad, bad, bad};
}

template <typename T>
DIFFREG_HD Neighbours<T> locate(const Sampling& sampling, T coordinate, T bad, int32_t size) {
  return sampling.interpolation == Interpolation::linear
             ? linear(coordinate, bad, size, sampling.padding)
             : nearest(coordinate, bad, size, sampling.padding);
}

// Value at a point: the product of the axes' interpolations. stride[k] is that of axis k; `image`
// is a pointer, or what can be moved and read like one.
template <int D, int Axis = 0, typename Image, typename Stride, typename T>
DIFFREG_HD T value(Image image, const Stride* stride, const Neighbours<T>* at) {
  if constexpr (Axis == D) {
    return *image;
  } else {
    return at[Axis].interpolate(
        value<D, Axis + 1>(image + at[Axis].low * stride[Axis], stride, at),
        value<D, Axis + 1>(image + at[Axis].high * stride[Axis], stride, at));
  }
}

// The 2^D voxels around a point, the first axis slowest: each is read once for all derivatives.
template <int D, typename T>
struct Corners {
  T voxel[1 << D];

  // of(k) is the k-th of them.
  template <typename Of>
  DIFFREG_HD explicit Corners(const Of& of) {
    for (int k = 0; k < 1 << D; ++k) voxel[k] = of(k);
  }

  template <typename Image, typename Stride>
  DIFFREG_HD Corners(Image image, const Stride* stride, const Neighbours<T>* at) {
    read<0, 0>(image, stride, at);
  }

  // `counts`: each axis' low voxel does, as in Neighbours.
  template <bool counts = false>
  DIFFREG_HD T value(const Neighbours<T>* at) const {
    return contract<D, counts>(voxel, at);
  }

  // Derivative of the value by the coordinate of axis `By`. Where the low voxels count, slopes are
  // each other's opposite, and are multiplied by in the end: the same bits.
  template <int By, bool counts = false>
  DIFFREG_HD T derivative(const Neighbours<T>* at) const {
    const T found = contract<By, counts>(voxel, at);
    return counts ? passed_on(at[By].high_slope, found) : found;
  }

 private:
  template <int By, bool counts, int Axis = 0>
  DIFFREG_HD static T contract(const T* corner, const Neighbours<T>* at) {
    if constexpr (Axis == D) {
      return *corner;
    } else {
      const T low = contract<By, counts, Axis + 1>(corner, at);
      const T high = contract<By, counts, Axis + 1>(corner + (1 << (D - 1 - Axis)), at);
      if constexpr (Axis != By) {
        return at[Axis].template interpolate<counts>(low, high);
      } else {
        return counts ? high - low : at[Axis].differentiate(low, high);
      }
    }
  }

  template <int Axis, int corner, typename Image, typename Stride>
  DIFFREG_HD void read(Image image, const Stride* stride, const Neighbours<T>* at) {
    if constexpr (Axis == D) {
      voxel[corner] = *image;
    } else {
      read<Axis + 1, corner>(image + at[Axis].low * stride[Axis], stride, at);
      read<Axis + 1, corner + (1 << (D - 1 - Axis))>(image + at[Axis].high * stride[Axis], stride,
                                                     at);
    }
  }
};

// The adjoint of the value: add(corner, weight * gradient) for each corner whose index on axis 0 is
// in [first, end), the rows that the caller owns.
template <int D, int Axis = 0, typename T, typename Add>
DIFFREG_HD void splat(T* image, const int64_t* stride, const Neighbours<T>* at, T gradient,
                      int64_t first, int64_t end, const Add& add) {
  if constexpr (Axis == D) {
    add(image, gradient);
  } else {
    const auto visit = [&](int64_t index, T weight) {
      if (weight == 0 || gradient == 0 || (Axis == 0 && (index < first || index >= end))) return;
      splat<D, Axis + 1>(image + index * stride[Axis], stride, at, weight * gradient, first, end,
                         add);
    };
    visit(at[Axis].low, at[Axis].low_weight);
    visit(at[Axis].high, at[Axis].high_weight);
  }
}

}  // namespace diffreg::warp
