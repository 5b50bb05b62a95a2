// CUDA only: where a voxel of the fixed grid lands on the moving grid, for each interpolation, and
// what follows there: the value, its derivatives, and the adjoint.
#pragma once

#include "corners.h"
#include "cubic.h"
#include "warp_cuda.h"

namespace diffreg::warp {

// Voxels from one to the next along each axis of the moving grid.
template <int D>
struct Strides {
  int64_t along[D];

  DIFFREG_DEVICE explicit Strides(const int32_t* size) {
    along[D - 1] = 1;
    for (int k = D - 1; k > 0; --k) along[k - 1] = along[k] * size[k];
  }
};

// Every row is owned.
constexpr int64_t kFirstRow = INT64_MIN, kLastRow = INT64_MAX;

template <typename T>
DIFFREG_DEVICE void add_in_any_order(T* voxel, T part) {
  atomicAdd(voxel, part);
}

// Adds what is 0, which no compiler knows. Between two turns of a loop over channels it keeps what
// follows from the value inside, and the first turn, often the only one, becomes code of its own:
// registers and predicates are too few for all that could be worked out before.
DIFFREG_DEVICE void renew(int32_t& value) { value += static_cast<int32_t>(gridDim.z) - 1; }
template <typename T>
DIFFREG_DEVICE void renew(T& value) {
  value = gridDim.z == 1 ? value : T(0);
}

template <int D, typename T, Padding padding>
struct LinearPoint {
  static constexpr int kSteps = D == 2 ? 2 : 1, kBackwardSteps = 1;
  // What fits without spilling.
  static constexpr int kFewer = padding == Padding::border ? 0 : 1;
  static constexpr int kBlocks = sizeof(T) == 8 ? kResident : (D == 2 ? 3 : 4 - kFewer);
  static constexpr int kBackwardBlocks =
      sizeof(T) == 8 ? kResident : (D == 2 ? 4 - kFewer : 3 - kFewer);
  static constexpr int kTogether = D == 3 && sizeof(T) == 8 ? 1 : 2;
  static constexpr bool kIsLinear = true, kCounts = padding != Padding::zeros;
  Neighbours<T> at[D];

  LinearPoint() = default;
  DIFFREG_DEVICE LinearPoint(const Problem<D>& problem, const T* point, T bad) {
    for (int k = 0; k < D; ++k) at[k] = linear(point[k], bad, problem.from[k], padding);
  }

  DIFFREG_DEVICE void renew() {
    for (int k = 0; k < D; ++k) {
      warp::renew(at[k].low);
      warp::renew(at[k].high);
      warp::renew(at[k].low_weight);
      warp::renew(at[k].high_weight);
      warp::renew(at[k].low_slope);
      warp::renew(at[k].high_slope);
    }
  }

  template <typename S>
  DIFFREG_DEVICE T value(const Problem<D>& problem, const S* image) const {
    return corners_of<D>(image, problem.from, at).template value<kCounts>(at);
  }
  template <typename S>
  DIFFREG_DEVICE void derivatives(const Problem<D>& problem, const S* image, T* found) const {
    const auto corners = corners_of<D>(image, problem.from, at);
    found[0] = corners.template derivative<0, kCounts>(at);
    found[1] = corners.template derivative<1, kCounts>(at);
    if constexpr (D == 3) found[2] = corners.template derivative<2, kCounts>(at);
  }
  DIFFREG_DEVICE void add_to(const Problem<D>& problem, T* image, T gradient) const {
    splat<D>(image, Strides<D>(problem.from).along, at, gradient, kFirstRow, kLastRow,
             add_in_any_order<T>);
  }
};

template <int D, typename T>
struct NearestPoint {
  static constexpr int kSteps = 1, kBackwardSteps = 1, kTogether = 2;
  static constexpr int kBlocks = kResident, kBackwardBlocks = kResident;
  static constexpr bool kIsLinear = false;
  int64_t voxel;
  T weight, bad;

  NearestPoint() = default;
  DIFFREG_DEVICE NearestPoint(const Problem<D>& problem, const T* point, T bad)
      : voxel(0), weight(1), bad(bad) {
    const Strides<D> strides(problem.from);
    for (int k = 0; k < D; ++k) {
      const Neighbours<T> at = nearest(point[k], bad, problem.from[k], problem.sampling.padding);
      voxel += at.low * strides.along[k];
      weight *= at.low_weight;
    }
  }

  // 0, or NaN, under any padding.
  template <typename S>
  DIFFREG_DEVICE void derivatives(const Problem<D>&, const S*, T* found) const {
    for (int k = 0; k < D; ++k) found[k] = bad;
  }
  DIFFREG_DEVICE void add_to(const Problem<D>&, T* image, T gradient) const {
    if (weight != 0 && gradient != 0) add_in_any_order(image + voxel, weight * gradient);
  }
};

// What is stored as S, read as what is computed with.
template <typename S>
struct Loaded {
  const S* data;

  DIFFREG_DEVICE Loaded operator+(int64_t step) const { return {data + step}; }
  DIFFREG_DEVICE Arithmetic<S> operator*() const { return load(data); }
};

template <int D, typename T>
struct CubicPoint {
  static constexpr int kSteps = 1, kBackwardSteps = 1, kTogether = 1;
  static constexpr int kBlocks = 1, kBackwardBlocks = 1;
  static constexpr bool kIsLinear = false;
  CubicAxis<T> at[D];

  CubicPoint() = default;
  DIFFREG_DEVICE CubicPoint(const Problem<D>& problem, const T* point, T bad) {
    for (int k = 0; k < D; ++k) {
      at[k] = CubicAxis<T>(point[k], bad, problem.from[k], problem.sampling.padding);
    }
  }

  template <typename S>
  DIFFREG_DEVICE T value(const Problem<D>& problem, const S* image) const {
    T found[1];
    contract<D>(Loaded<S>{image}, Strides<D>(problem.from).along, at, found);
    return found[0];
  }
  template <typename S>
  DIFFREG_DEVICE void derivatives(const Problem<D>& problem, const S* image, T* found) const {
    T all[1 + D];
    contract<D>(Loaded<S>{image}, Strides<D>(problem.from).along, at, all);
    for (int k = 0; k < D; ++k) found[k] = all[1 + k];
  }
  DIFFREG_DEVICE void add_to(const Problem<D>& problem, T* image, T gradient) const {
    if (gradient == 0) return;
    splat_cubic<D>(image, Strides<D>(problem.from).along, at, gradient, kFirstRow, kLastRow,
                   add_in_any_order<T>);
  }
};

// Calls run(Point*) with the type of the points that `sampling` asks for.
template <int D, typename T, typename Run>
void dispatch_point(const Sampling& sampling, const Run& run) {
  switch (sampling.interpolation) {
    case Interpolation::nearest: return run(static_cast<NearestPoint<D, T>*>(nullptr));
    case Interpolation::cubic: return run(static_cast<CubicPoint<D, T>*>(nullptr));
    case Interpolation::linear:
      dispatch_padding(sampling.padding, [&](auto padding) {
        run(static_cast<LinearPoint<D, T, decltype(padding)::value>*>(nullptr));
      });
  }
}
template <typename Pointer>
using PointOf = std::remove_pointer_t<Pointer>;

}  // namespace diffreg::warp
