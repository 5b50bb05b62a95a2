// W(p) = moving(p + u(p)) and its gradients. A thread works on a few voxels of the fixed grid at
// once, rows are coalesced; what moving is read twice for comes out of the cache.
#include "forward_kernels.h"
#include "gather.h"

namespace diffreg::warp {
namespace {

// Resident blocks: of half types, whose words are taken apart, a third one would spill in 3-D.
template <int D, typename S, typename Point>
constexpr int kBackwardBlocks =
    D == 3 && sizeof(S) == 2 && Point::kBackwardBlocks > 2 ? 2 : Point::kBackwardBlocks;

template <int D, typename S, typename G, typename Point, bool masked>
__global__ void __launch_bounds__(kThreads, (kBackwardBlocks<D, S, Point>))
    backward_kernel(Problem<D> problem, FixedTiles<D> tiles, Displaced<D, S> field,
                    const G* gradient,           // (N, C, *to)
                    const S* moving,             // (N, C, *from)
                    const Arithmetic<S>* mask,   // (N, 1, *to) if `masked`
                    Arithmetic<S>* grad_moving,  // (N, C, *from), zeros, or null
                    G* grad_displacement,        // (N, D, *to) or null
                    bool accumulate) {
  using T = Arithmetic<S>;
  using Voxels = ThreadVoxels<D, Point::kBackwardSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, field, [&](Voxels voxels, const auto& points) {
    Point at[Voxels::kCount];
    voxels.locate(problem, points, at);
    T sum[Voxels::kCount][D];
    for (auto& one : sum) {
      for (T& component : one) component = -T(0);  // to which the first channel adds nothing
    }
    const G* upstreams = gradient + voxels.in_image;
    int64_t image = voxels.in_moving;
    const T* weights = mask;
    if constexpr (masked) {
      const int64_t n = voxels.in_moving / problem.image_stride;
      weights += voxels.in_image - n * (problem.channels - 1) * problem.to_voxels;
    }
    for (int64_t c = 0;;) {
      T upstream[Voxels::kCount];
#pragma unroll
      for (int k = 0; k < Voxels::kCount; ++k) {
        upstream[k] = voxels.valid(k) ? load(upstreams + voxels.offset(k)) : 0;
      }
      if (grad_displacement) {
#pragma unroll
        for (int k = 0; k < Voxels::kCount; ++k) {
          T found[D];
          at[k].derivatives(problem, moving + image, found);
          const bool read = masked && voxels.valid(k);
          const T weight = read ? load(weights + voxels.offset(k)) : T(1);
          for (int d = 0; d < D; ++d) {
            const T part = passed_on(upstream[k], found[d]);
            sum[k][d] += masked ? visible(part, weight) : part;
          }
        }
      }
      if (grad_moving) {
#pragma unroll
        for (int k = 0; k < Voxels::kCount; ++k) {
          if (!voxels.valid(k)) continue;
          at[k].add_to(problem, grad_moving + image, upstream[k]);
        }
      }
      if (++c == problem.channels) break;
      if constexpr (Point::kIsLinear) {
        voxels.renew();
        for (Point& point : at) point.renew();
      }
      image += problem.from_voxels;
      upstreams += problem.to_voxels;
    }
    if (!grad_displacement) return;
    G* out = grad_displacement + voxels.in_field;
#pragma unroll
    for (int k = 0; k < Voxels::kCount; ++k) {
      if (!voxels.valid(k)) continue;
      for (int d = 0; d < D; ++d) {
        G* to = out + d * problem.to_voxels + voxels.offset(k);
        store(to, accumulate ? load(to) + sum[k][d] : sum[k][d]);
      }
    }
  });
}

}  // namespace

template <int D, typename S, typename G>
void launch_forward(const Problem<D>& problem, const S* moving, const S* displacement, G* warped,
                    void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = PointOf<decltype(point)>;
    constexpr bool kNearest = std::is_same_v<Point, NearestPoint<D, Arithmetic<S>>>;
    if constexpr (!kNearest && (std::is_same_v<S, G> || Point::kIsLinear)) {
      DIFFREG_LAUNCH((forward_kernel<D, S, G, Point, Displaced<D, S>>), tiles.count(),
                     block_shape(), stream, problem, tiles, Displaced<D, S>{displacement}, moving,
                     warped);
    }
  });
}

template <int D, typename V, typename U>
void launch_nearest(const Problem<D>& problem, V nan, const V* moving, const U* displacement,
                    V* warped, void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  DIFFREG_LAUNCH((nearest_kernel<D, V, Displaced<D, U>>), tiles.count(), block_shape(), stream,
                 problem, tiles, Displaced<D, U>{displacement}, nan, moving, warped);
}

template <int D, typename S, typename G>
void launch_backward(const Problem<D>& problem, const G* gradient, const S* moving,
                     const S* displacement, Arithmetic<S>* grad_moving, G* grad_displacement,
                     bool accumulate, void* stream, const Arithmetic<S>* mask) {
  if (grad_moving) {
    const int64_t voxels = problem.samples * problem.channels * problem.from_voxels;
    zero(grad_moving, voxels * sizeof(Arithmetic<S>), stream);
  }
  const FixedTiles<D> tiles(problem.samples, problem.to);
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = PointOf<decltype(point)>;
    [[maybe_unused]] const auto launch = [&](auto masked) {
      constexpr bool kMasked = decltype(masked)::value;
      DIFFREG_LAUNCH((backward_kernel<D, S, G, Point, kMasked>), tiles.count(), block_shape(),
                     stream, problem, tiles, Displaced<D, S>{displacement}, gradient, moving, mask,
                     grad_moving, grad_displacement, accumulate);
    };
    if constexpr (std::is_same_v<G, Arithmetic<S>> && Point::kIsLinear) {
      if (mask) return launch(std::true_type{});
    }
    if constexpr (std::is_same_v<S, G> || Point::kIsLinear) launch(std::false_type{});
  });
}

template <int D>
int64_t gather_doubles(const Problem<D>& problem) {
  const SmallTiles<D> tiles(problem.samples, problem.to);
  const Groups groups(tiles.per_sample);
  return problem.samples * (groups.tiles + groups.count) * (sizeof(Box<D>) / sizeof(double));
}

template <int count, int D, typename S>
void launch_gather(const Problem<D>& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const SmallTiles<D> tiles(problem.samples, problem.to);
  const SmallTiles<D> owned(problem.samples * problem.channels, problem.from);
  const Groups groups(tiles.per_sample);
  Box<D>* boxes = reinterpret_cast<Box<D>*>(workspace);
  Box<D>* group_boxes = boxes + tiles.count();
  DIFFREG_LAUNCH((boxes_kernel<D, S, count>), tiles.count(), block_shape(), stream, problem, tiles,
                 displacement, boxes);
  DIFFREG_LAUNCH(groups_kernel<D>, problem.samples * groups.count, block_shape(), stream, groups,
                 problem.samples, boxes, group_boxes);
  DIFFREG_LAUNCH((gather_kernel<D, S, count>), owned.count(), block_shape(), stream, problem, owned,
                 tiles, groups, gradient, displacement, boxes, group_boxes, grad_moving);
}

template <int D, typename S>
void launch_gather(const Problem<D>& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const auto launch = problem.sampling.interpolation == Interpolation::cubic
                          ? launch_gather<4, D, S>
                          : launch_gather<2, D, S>;
  launch(problem, gradient, displacement, workspace, grad_moving, stream);
}

#define DIFFREG_NEAREST(D, V, S) \
  template void launch_nearest(const Problem<D>&, V, const V*, const S*, V*, void*);
#define DIFFREG_TO(D, S, G)                                                                      \
  template void launch_forward(const Problem<D>&, const S*, const S*, G*, void*);                \
  template void launch_backward(const Problem<D>&, const G*, const S*, const S*, Arithmetic<S>*, \
                                G*, bool, void*, const Arithmetic<S>*);
#define DIFFREG_INSTANCES(D, S)                                                               \
  template void launch_gather(const Problem<D>&, const S*, const S*, double*, Arithmetic<S>*, \
                              void*);                                                         \
  DIFFREG_TO(D, S, S)                                                                         \
  DIFFREG_NEAREST(D, uint8_t, S)                                                              \
  DIFFREG_NEAREST(D, uint16_t, S)                                                             \
  DIFFREG_NEAREST(D, uint32_t, S)                                                             \
  DIFFREG_NEAREST(D, uint64_t, S)                                                             \
  DIFFREG_NEAREST(D, TwoWords, S)
#define DIFFREG_OF_DIMENSIONS(D)                      \
  template int64_t gather_doubles(const Problem<D>&); \
  DIFFREG_TO(D, Half, float)                          \
  DIFFREG_TO(D, BFloat16, float)
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)
DIFFREG_OF_DIMENSIONS(2)
DIFFREG_OF_DIMENSIONS(3)

}  // namespace diffreg::warp
