// Corner determinants of every cell, and the gradient that each vertex gathers from its four cells:
// warps march down the columns of the field, every cell is computed once.
#include "../common/cell_columns.h"
#include "jacobian_determinant_cuda.h"

namespace diffreg::jacobian_determinant {
namespace {

using CellStrips = Strips<0, 1, 0>;
// What the cells to the left and above add comes from the lane and the row before: a halo of one.
using VertexStrips = Strips<1, 1, 1>;

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, CellStrips strips,
                   const S* displacement,  // (N, 2, H, W)
                   // (N, 4, H-1, W-1), or (N, H-1, W-1) where reduced
                   Arithmetic<S>* determinant) {
  using T = Arithmetic<S>;
  const int32_t H = strips.height, W = strips.width;
  const bool reduces = problem.reduce != Reduce::none;
  const int64_t cells = int64_t{H - 1} * (W - 1);
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const FieldColumn<S> field(displacement, place.plane, H, W, place.x);
    T* own = determinant + (reduces ? 1 : 4) * place.plane * cells + place.x;
    const bool owns = place.owns && inside(place.x, W - 1);
    FieldRow<T, 2> here(field.at(place.y));
    march(
        place.y, place.end, H - 1, [&](int32_t y, bool inner) { return field.at(y + 1, inner); },
        [&](int32_t y, const Vector<T>& next, bool inner) {
          const FieldRow<T, 2> below(next);
          const Cell<2, T> cell = cell_of(here, below);
          here = below;
          if (!owns || !(inner || inside(y, H - 1))) return;
          T* at = row_of(own, y, W - 1);
          if (reduces) {
            store(at, reduced(problem.reduce, cell));
          } else {
            T corner[4];
            cell.determinants(corner);
            for (int k = 0; k < 4; ++k) store(at + k * cells, corner[k]);
          }
        });
  }
}

// A row of vertices, and the upstream gradient of the cells above it.
template <typename T, int values>
struct Row {
  Vector<T> u;
  T upstream[values];
};

// values: how many a cell has, 4 or 1.
template <typename S, int values>
__global__ void __launch_bounds__(kThreads, sizeof(Arithmetic<S>) == 8 ? 2 : (values == 1 ? 4 : 3))
    backward_kernel(Problem problem, VertexStrips strips,
                    const Arithmetic<S>* gradient,  // (N, values, H-1, W-1)
                    const S* displacement,          // (N, 2, H, W)
                    S* grad_displacement) {         // (N, 2, H, W)
  using T = Arithmetic<S>;
  const int32_t H = strips.height, W = strips.width;
  const int64_t cells = int64_t{H - 1} * (W - 1), voxels = int64_t{H} * W;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const FieldColumn<S> field(displacement, place.plane, H, W, place.x);
    const T* upstream = gradient + values * place.plane * cells + place.x;
    S* own = grad_displacement + 2 * place.plane * voxels + place.x;
    const bool along = inside(place.x, W - 1);
    FieldRow<T, 2> here(field.at(place.y - 1));
    CellScatter<T> scatter;
    const auto read = [&](int32_t y, bool inner) {
      Row<T, values> row{field.at(y + 1, inner), {}};
      if (along && (inner || inside(y, H - 1))) {
        for (int k = 0; k < values; ++k) {
          row.upstream[k] = load(row_of(upstream, y, W - 1) + k * cells);
        }
      }
      return row;
    };
    march(place.y - 1, place.end, H - 1, read, [&](int32_t y, Row<T, values> row, bool inner) {
      const FieldRow<T, 2> below(row.u);
      const Cell<2, T> cell = cell_of(here, below);
      here = below;
      T sum[2] = {}, right[2] = {};
      if (cells > 0) {
        if constexpr (values == 1) {
          T corner[4];
          cell.determinants(corner);
          spread<2>(problem.reduce, row.upstream[0], corner);
          scatter.add(cell, corner, sum, right);
        } else {
          scatter.add(cell, row.upstream, sum, right);
        }
      }
      for (int c = 0; c < 2; ++c) sum[c] += shuffle_from_left(right[c]);
      if (!place.owns || y < place.y || !(inner || inside(y, H))) return;
      for (int c = 0; c < 2; ++c) store(row_of(own, y, W) + c * voxels, sum[c]);
    });
  }
}

}  // namespace

template <typename S>
void launch_forward(const Problem& problem, const S* displacement, Arithmetic<S>* determinant,
                    void* stream) {
  const auto strips = strips_of<CellStrips>(problem);
  DIFFREG_LAUNCH(forward_kernel<S>, strips.count(), block_shape(), stream, problem, strips,
                 displacement, determinant);
}

template <typename S>
void launch_backward(const Problem& problem, const Arithmetic<S>* gradient, const S* displacement,
                     S* grad_displacement, void* stream) {
  const auto strips = strips_of<VertexStrips>(problem);
  const auto launch = [&](auto values) {
    DIFFREG_LAUNCH((backward_kernel<S, decltype(values)::value>), strips.count(), block_shape(),
                   stream, problem, strips, gradient, displacement, grad_displacement);
  };
  if (problem.reduce == Reduce::none) {
    launch(Constant<4>());
  } else {
    launch(Constant<1>());
  }
}

#define DIFFREG_INSTANCES(S)                                                     \
  template void launch_forward(const Problem&, const S*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem&, const Arithmetic<S>*, const S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::jacobian_determinant
