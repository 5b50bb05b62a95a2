// out(p) = moving(M (p + u(p), 1)) and its gradients to M and u. A thread's voxels of a tile are
// steps from the first of them, its anchor.
#include "../common/block_reduce.h"
#include "../warp/forward_kernels.h"
#include "affine_warp_cuda.h"

namespace diffreg::affine_warp {
namespace {

using warp::dispatch_point;
using warp::FixedTiles;
using warp::NearestPoint;
using warp::ThreadVoxels;

// What warp::Displaced is for a displacement alone; without one, u is 0.
template <int D, typename S>
struct Mapped {
  using Type = Arithmetic<S>;
  const double* matrix;   // (N, D, D + 1)
  const S* displacement;  // (N, D, *to) or null

  // An anchor takes registers.
  template <typename Point>
  static constexpr int blocks() {
    if constexpr (Point::kIsLinear && sizeof(Type) < 8) return D == 2 ? 3 - Point::kFewer : 2;
    return 1;
  }

  struct Points {
    using Type = Arithmetic<S>;
    const S* displacement;
    const double* map;  // (D, D + 1)
    int32_t first[D];   // the anchor's voxel
    Anchor<D, Type> anchor;

    DIFFREG_DEVICE Points(const S* displacement, const double* map, const int32_t* start)
        : displacement(displacement), map(map) {
      for (int k = 0; k < D; ++k) first[k] = start[k];
      anchor = found_anchor();
    }
    DIFFREG_DEVICE Anchor<D, Type> found_anchor() const {
      double numbers[D][D + 1];
      for (int k = 0; k < D; ++k) {
        for (int j = 0; j <= D; ++j) numbers[k][j] = load(map + k * (D + 1) + j);
      }
      return {numbers, first};
    }
    // The same found anew, where registers are too few to keep it.
    template <bool few>
    DIFFREG_DEVICE Points at_hand() const {
      Points points = *this;
      if constexpr (few) {
        points.map = kept(map);
        points.anchor = points.found_anchor();
      }
      return points;
    }

    DIFFREG_DEVICE bool displaced() const { return displacement != nullptr; }
    DIFFREG_DEVICE void step(const int32_t* voxel, const Type* shift, Type* steps) const {
      for (int k = 0; k < D; ++k) steps[k] = static_cast<Type>(voxel[k] - first[k]) + shift[k];
    }
    DIFFREG_DEVICE Type land(const int32_t* voxel, const Type* shift, Type* point) const {
      Type steps[D];
      step(voxel, shift, steps);
      return anchor.point(steps, point);
    }
  };

  DIFFREG_DEVICE Points points(int64_t sample, const int32_t* start) const {
    return {displacement, matrix + sample * D * (D + 1), start};
  }
};

// What a thread's voxels of a tile give to the gradient to the map: sums of the gradient along each
// axis times their steps from the anchor, and alone.
template <int D, typename T>
struct ThreadSums {
  static constexpr int kCount = D * (D + 1);
  T of[kCount] = {};

  DIFFREG_DEVICE void add(const T* along, const T* steps) {
    for (int k = 0; k < D; ++k) {
      T* row = of + k * (D + 1);
      for (int j = 0; j < D; ++j) row[j] += warp::passed_on(along[k], steps[j]);
      row[D] += along[k];
    }
  }
  // Times p + u(p), and 1.
  DIFFREG_DEVICE void from_origin(const int32_t* anchor, double (&sums)[kCount]) const {
    for (int k = 0; k < D; ++k) {
      const T* row = of + k * (D + 1);
      for (int j = 0; j <= D; ++j) {
        sums[k * (D + 1) + j] = row[j] + (j < D ? static_cast<double>(row[D]) * anchor[j] : 0);
      }
    }
  }
};

// Those of a block, in shared memory where registers are too few.
template <int D, typename T>
struct BlockSums {
  T of[ThreadSums<D, T>::kCount][kThreads];

  DIFFREG_DEVICE ThreadSums<D, T> own() const {
    ThreadSums<D, T> sums;
    for (int k = 0; k < sums.kCount; ++k) sums.of[k] = of[k][thread_index()];
    return sums;
  }
  DIFFREG_DEVICE void keep(const ThreadSums<D, T>& sums) {
    for (int k = 0; k < sums.kCount; ++k) of[k][thread_index()] = sums.of[k];
  }
};
struct NoSums {};

// A thread has few registers left beside these.
template <typename Point>
constexpr bool kFew = Point::kTogether == 1;
template <typename T, typename Point>
constexpr int kBackwardBlocks = sizeof(T) == 8 || kFew<Point> ? 1 : 2;

template <int D, typename S, typename Point>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<Arithmetic<S>, Point>)
    backward_kernel(Problem<D> problem, FixedTiles<D> tiles, Mapped<D, S> field,
                    Reduction reduction,     // (N, D (D + 1), tiles)
                    const S* gradient,       // (N, C, *to)
                    const S* moving,         // (N or 1, C, *from)
                    double* grad_matrix,     // (N, D, D + 1) or null
                    S* grad_displacement) {  // (N, D, *to) or null
  using T = Arithmetic<S>;
  using Voxels = ThreadVoxels<D, 1, 1>;
  using Sums = ThreadSums<D, T>;
  using Kept = std::conditional_t<kFew<Point>, BlockSums<D, T>, NoSums>;
  DIFFREG_SHARED(Kept, kept_sums);
  Sums sums;
  if constexpr (kFew<Point>) kept_sums.keep(sums);
  const auto of_voxel = [&](Voxels voxels, const auto& points) {
    if (!voxels.valid(0)) return;
    T shift[D], steps[D], point[D], along[D];
    const auto locate = [&](const auto& from) {
      for (int k = 0; k < D; ++k) {
        shift[k] = from.displaced() ? voxels.shift(problem, from, k, 0) : T(0);
      }
      from.step(voxels.start, shift, steps);
    };
    const auto before = points.template at_hand<kFew<Point>>();
    locate(before);
    const T bad = before.anchor.point(steps, point);
    const Point at(problem, point, bad);
    for (int k = 0; k < D; ++k) along[k] = -T(0);  // to which the first channel adds nothing
#pragma unroll 1
    for (int64_t c = 0; c < problem.channels; ++c) {
      const T upstream = load(gradient + voxels.in_image + c * problem.to_voxels);
      T found[D];
      at.derivatives(problem, moving + voxels.in_moving + c * problem.from_voxels, found);
      for (int k = 0; k < D; ++k) along[k] += warp::passed_on(upstream, found[k]);
    }
    const auto behind = points.template at_hand<kFew<Point>>();
    if (grad_matrix) {
      if constexpr (kFew<Point>) {
        voxels.in_field = kept(voxels.in_field);
        locate(behind);
        sums = kept_sums.own();
      }
      sums.add(along, steps);
      if constexpr (kFew<Point>) kept_sums.keep(sums);
    }
    if (!grad_displacement) return;
    for (int k = 0; k < D; ++k) {
      store(grad_displacement + voxels.in_field + k * problem.to_voxels,
            to_displacement(behind.anchor.linear, along, k));
    }
  };
  Voxels::grid_stride(problem, tiles, field, of_voxel, [&](int64_t tile, const auto& points) {
    if (!grad_matrix) return;
    if constexpr (kFew<Point>) {
      sums = kept_sums.own();
      kept_sums.keep({});
    }
    double of_map[Sums::kCount];
    sums.from_origin(points.first, of_map);
    sums = {};
    const int64_t sample = tile / tiles.per_sample;
    reduce_tiles(reduction, of_map, sample, tile - sample * tiles.per_sample, tiles.per_sample,
                 [&](const double* total) {
                   double* out = grad_matrix + sample * Sums::kCount;
                   DIFFREG_UNROLL
                   for (int k = 0; k < Sums::kCount; ++k) store(out + k, total[k]);
                 });
  });
}

}  // namespace

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const S* moving, const double* matrix,
                    const S* displacement, S* warped, void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = warp::PointOf<decltype(point)>;
    if constexpr (!std::is_same_v<Point, NearestPoint<D, Arithmetic<S>>>) {
      DIFFREG_LAUNCH((warp::forward_kernel<D, S, S, Point, Mapped<D, S>>), tiles.count(),
                     block_shape(), stream, problem, tiles, Mapped<D, S>{matrix, displacement},
                     moving, warped);
    }
  });
}

template <int D, typename V, typename U>
void launch_nearest(const Problem<D>& problem, V nan, const V* moving, const double* matrix,
                    const U* displacement, V* warped, void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  DIFFREG_LAUNCH((warp::nearest_kernel<D, V, Mapped<D, U>>), tiles.count(), block_shape(), stream,
                 problem, tiles, Mapped<D, U>{matrix, displacement}, nan, moving, warped);
}

template <int D>
int64_t backward_doubles(const Problem<D>& problem) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  return reduction_doubles(problem.samples, D * (D + 1), tiles.per_sample);
}

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const S* gradient, const S* moving,
                     const double* matrix, const S* displacement, double* workspace,
                     double* grad_matrix, S* grad_displacement, void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  Reduction reduction{};
  if (grad_matrix) {
    reduction = make_reduction(workspace, problem.samples, D * (D + 1), tiles.per_sample, stream);
  }
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = warp::PointOf<decltype(point)>;
    DIFFREG_LAUNCH((backward_kernel<D, S, Point>), tiles.count(), block_shape(), stream, problem,
                   tiles, Mapped<D, S>{matrix, displacement}, reduction, gradient, moving,
                   grad_matrix, grad_displacement);
  });
}

#define DIFFREG_NEAREST(D, V, S) \
  template void launch_nearest(const Problem<D>&, V, const V*, const double*, const S*, V*, void*);
#define DIFFREG_INSTANCES(D, S)                                                                  \
  template void launch_forward(const Problem<D>&, const S*, const double*, const S*, S*, void*); \
  template void launch_backward(const Problem<D>&, const S*, const S*, const double*, const S*,  \
                                double*, double*, S*, void*);                                    \
  DIFFREG_NEAREST(D, uint8_t, S)                                                                 \
  DIFFREG_NEAREST(D, uint16_t, S)                                                                \
  DIFFREG_NEAREST(D, uint32_t, S)                                                                \
  DIFFREG_NEAREST(D, uint64_t, S)                                                                \
  DIFFREG_NEAREST(D, warp::TwoWords, S)
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)
template int64_t backward_doubles(const Problem<2>&);
template int64_t backward_doubles(const Problem<3>&);

}  // namespace diffreg::affine_warp
