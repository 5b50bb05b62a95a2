// Separable cubic interpolation by Keys' kernel with a = -3/4, as grid_sample's bicubic has it, in
// any number of axes.
#pragma once

#include "warp.h"

namespace diffreg::warp {

// A voxel of one axis with its weight and the weight's derivative.
template <typename T>
struct CubicTap {
  int32_t index;
  T weight, slope;
};

// The four voxels of one axis around a coordinate, those that a padding moves or takes away
// included.
template <typename T>
class CubicAxis {
 public:
  static constexpr int kTaps = 4;

  CubicAxis() = default;
  DIFFREG_HD CubicAxis(T coordinate, T bad, int32_t size, Padding padding)
      : bad_(bad), sign_(1), size_(size), padding_(padding) {
    const T last = static_cast<T>(size - 1);
    T at = coordinate;
    if (padding == Padding::reflection) {
      const Mirrored<T> mirrored(coordinate, last);
      at = mirrored.coordinate;
      sign_ = mirrored.sign;
    }
    // Three voxels beyond the image nothing changes any more; what is not finite goes there, too.
    at = at > -3 ? at : T(-3);
    at = at < last + 3 ? at : last + 3;
    const T low = std::floor(at);
    fraction_ = at - low;
    low_ = static_cast<int32_t>(low);
  }

  DIFFREG_HD CubicTap<T> tap(int k) const {
    const T t = fraction_;
    const T distance = k == 0 ? t + 1 : (k == 1 ? t : (k == 2 ? 1 - t : 2 - t));
    const int32_t place = low_ + k - 1;
    const bool counts = padding_ != Padding::zeros || (place >= 0 && place < size_);
    const T towards = k < 2 ? T(1) : T(-1);
    const T slope = (counts ? towards * derivative(distance) : T(0)) + bad_;
    return {held(place), (counts ? kernel(distance) : T(0)) + bad_, sign_ * slope};
  }

 private:
  static constexpr T kA = T(-0.75);
  T fraction_, bad_, sign_;
  int32_t low_, size_;
  Padding padding_;

  DIFFREG_HD int32_t held(int32_t place) const {
    if (padding_ == Padding::reflection) {
      const T last = static_cast<T>(size_ - 1);
      return static_cast<int32_t>(Mirrored<T>(static_cast<T>(place), last).coordinate);
    }
    return place < 0 ? 0 : (place < size_ ? place : size_ - 1);
  }
  DIFFREG_HD static T kernel(T d) {
    return d <= 1 ? ((kA + 2) * d - (kA + 3)) * d * d + 1 : ((d - 5) * d + 8) * d * kA - 4 * kA;
  }
  DIFFREG_HD static T derivative(T d) {
    return d <= 1 ? (3 * (kA + 2) * d - 2 * (kA + 3)) * d : ((3 * d - 10) * d + 8) * kA;
  }
};

// The same, worked out once.
template <typename T>
class CubicTaps {
 public:
  CubicTaps() = default;
  DIFFREG_HD explicit CubicTaps(const CubicAxis<T>& axis) {
    DIFFREG_UNROLL
    for (int k = 0; k < CubicAxis<T>::kTaps; ++k) {
      const CubicTap<T> tap = axis.tap(k);
      index_[k] = tap.index;
      weight_[k] = tap.weight;
      slope_[k] = tap.slope;
    }
  }
  DIFFREG_HD CubicTap<T> tap(int k) const { return {index_[k], weight_[k], slope_[k]}; }

 private:
  int32_t index_[CubicAxis<T>::kTaps];
  T weight_[CubicAxis<T>::kTaps], slope_[CubicAxis<T>::kTaps];
};

// Before a loop over an axis' taps. A GPU goes round the first axis' loop: what is loaded for four
// planes of a volume at once does not fit into registers.
#ifdef __CUDA_ARCH__
#define DIFFREG_UNROLL_TAPS _Pragma("unroll (Axis == 0 ? 1 : 4)")
#else
#define DIFFREG_UNROLL_TAPS
#endif

// A voxel of weight 0 does not count, whatever its value: -0 is added, which changes no sum. A
// processor's compiler that vectorises the condition adds 0 instead, and makes -0 to 0; on a GPU
// the condition is a predicate, and the other form takes registers that backward kernels in double
// do not have.
template <typename T>
DIFFREG_HD void add_times(T& sum, T weight, T value) {
#ifdef __CUDA_ARCH__
  if (weight != 0) sum += weight * value;
#else
  sum += weight * (weight != 0 ? value : T(-1));
#endif
}

// Sums over the 4^D voxels around a point of voxel times weights: found[0] is the value, found[1 +
// k], where there are as many, the derivative along axis k, for which the slopes stand in for the
// weights. `image` is a pointer, or what can be moved and read like one.
template <int D, int Axis = 0, typename Image, typename Axes, typename T, int count>
DIFFREG_HD void contract(Image image, const int64_t* stride, const Axes* at, T (&found)[count]) {
  if constexpr (Axis == D) {
    found[0] = *image;
  } else {
    DIFFREG_UNROLL
    for (int k = 0; k < count; ++k) found[k] = -T(0);  // warp(I, 0) is I to the bit, -0 too
    DIFFREG_UNROLL_TAPS
    for (int k = 0; k < CubicAxis<T>::kTaps; ++k) {
      const CubicTap<T> tap = at[Axis].tap(k);
      T of[count];
      contract<D, Axis + 1>(image + tap.index * stride[Axis], stride, at, of);
      add_times(found[0], tap.weight, of[0]);
      if constexpr (count > 1) {
        add_times(found[1 + Axis], tap.slope, of[0]);
        DIFFREG_UNROLL
        for (int j = 2 + Axis; j < count; ++j) add_times(found[j], tap.weight, of[j]);
      }
    }
  }
}

// Adds a gradient to the voxels around a point whose index on axis 0 is in [first, end), by
// add(voxel, part).
template <int D, int Axis = 0, typename T, typename Axes, typename Add>
DIFFREG_HD void splat_cubic(T* image, const int64_t* stride, const Axes* at, T gradient,
                            int64_t first, int64_t end, const Add& add) {
  if constexpr (Axis == D) {
    add(image, gradient);
  } else {
    DIFFREG_UNROLL_TAPS
    for (int k = 0; k < CubicAxis<T>::kTaps; ++k) {
      const CubicTap<T> tap = at[Axis].tap(k);
      if (tap.weight == 0 || (Axis == 0 && (tap.index < first || tap.index >= end))) continue;
      splat_cubic<D, Axis + 1>(image + tap.index * stride[Axis], stride, at, tap.weight * gradient,
                               first, end, add);
    }
  }
}

}  // namespace diffreg::warp
