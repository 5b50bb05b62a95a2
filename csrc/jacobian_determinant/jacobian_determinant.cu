// Corner determinants of every cell, and the gradient that each vertex gathers from the cells
// around it: warps march along the columns of the field, every cell is computed once.
#include "../common/cell_columns.h"
#include "jacobian_determinant_cuda.h"

namespace diffreg::jacobian_determinant {
namespace {

template <int D>
using CellStrips = Strips<D, 0, 1, 0>;
// What the cells before add comes from the lane, the row and the layer before: a halo of one.
template <int D>
using VertexStrips = Strips<D, 1, 1, 1, 1, 0>;

// Of the cells of a grid.
template <int D>
Extent<D> cells_of(const Problem<D>& problem) {
  int64_t size[D];
  for (int k = 0; k < D; ++k) size[k] = problem.size[k] - 1;
  return Extent<D>(size);
}

// Blocks of a multiprocessor for which registers must do, one for a volume's cells in double; the
// bound of such a cell has 27 sums.
template <int D, typename T, Reduce reduce>
constexpr int kForwardBlocks =
    D == 3 ? (sizeof(T) == 8 || reduce == Reduce::bound ? 1 : 2) : (sizeof(T) == 8 ? 2 : 4);
template <int D, typename T, Reduce reduce>
constexpr int kBackwardBlocks =
    D == 3 ? (sizeof(T) == 8 ? 1 : 2) : (sizeof(T) == 8 ? 2 : (reduce == Reduce::none ? 3 : 4));

// Layers whose loads are in flight at once.
template <int D>
constexpr int kLayers = D == 2 ? kBatch : 2;

// reduce: none, bound, or min for what reduces the corners.
template <int D, typename S, Reduce reduce>
__global__ void __launch_bounds__(kThreads, (kForwardBlocks<D, Arithmetic<S>, reduce>))
    forward_kernel(Reduce reduction, CellStrips<D> strips, Extent<D> cells,
                   const S* displacement,         // (N, D, *S)
                   Arithmetic<S>* determinant) {  // (N, values, *cells)
  using T = Arithmetic<S>;
  constexpr int values = kValues<D, reduce>;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const FieldRowColumns<D, S> field(displacement, place.image, strips.extent, place.column);
    T* own = determinant + values * place.image * cells.voxels + place.column.offset(cells);
    const bool owns = place.owns && place.column.inside(cells);
    Face<D, T> here(field.at(place.first));
    march<kLayers<D>>(
        place.first, place.end, cells.layers(),
        [&](int32_t z, bool inner) { return field.at(z + 1, inner); },
        [&](int32_t z, const FieldRows<D, T>& rows, bool inner) {
          const Face<D, T> next(rows);
          const Cell<D, T> cell = cell_of(here, next);
          here = next;
          if (!owns || !(inner || inside(z, cells.layers()))) return;
          T* at = row_of(own, z, cells.layer);
          if constexpr (reduce == Reduce::none) {
            T corner[values];
            cell.determinants(corner);
            for (int k = 0; k < values; ++k) store(at + k * cells.voxels, corner[k]);
          } else {
            store(at, reduced(reduce == Reduce::bound ? reduce : reduction, cell));
          }
        });
  }
}

// A layer of vertices, and the upstream gradient of the cells before it.
template <int D, typename T, int values>
struct Layer {
  FieldRows<D, T> u;
  T upstream[values];
};

template <int D, typename S, Reduce reduce>
__global__ void __launch_bounds__(kThreads, (kBackwardBlocks<D, Arithmetic<S>, reduce>))
    backward_kernel(Reduce reduction, VertexStrips<D> strips, Extent<D> cells,
                    const Arithmetic<S>* gradient,  // (N, values, *cells)
                    const S* displacement,          // (N, D, *S)
                    S* grad_displacement) {         // (N, D, *S)
  using T = Arithmetic<S>;
  constexpr int values = kValues<D, reduce>;
  const Extent<D>& extent = strips.extent;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const FieldRowColumns<D, S> field(displacement, place.image, extent, place.column);
    const T* upstream = gradient + values * place.image * cells.voxels + place.column.offset(cells);
    S* own = grad_displacement + D * place.image * extent.voxels + place.column.offset(extent);
    const bool has_cell = place.column.inside(cells);
    Face<D, T> here(field.at(place.first - 1));
    Scatter<D, T> scatter;
    const auto read = [&](int32_t z, bool inner) {
      Layer<D, T, values> layer{field.at(z + 1, inner), {}};
      if (has_cell && (inner || inside(z, cells.layers()))) {
        for (int k = 0; k < values; ++k) {
          layer.upstream[k] = load(row_of(upstream, z, cells.layer) + k * cells.voxels);
        }
      }
      return layer;
    };
    const auto step = [&](int32_t z, const Layer<D, T, values>& layer, bool inner) {
      const Face<D, T> next(layer.u);
      const Cell<D, T> cell = cell_of(here, next);
      here = next;
      T corner[1 << D];
      if constexpr (reduce == Reduce::none) {
        for (int k = 0; k < values; ++k) corner[k] = layer.upstream[k];
      } else {
        cell.determinants(corner);
        spread<D>(reduction, layer.upstream[0], corner);
      }
      scatter.move_on();
      scatter.add(cell, corner);
      const Components<D, T> sum = scatter.collect();
      if (!place.owns || z < place.first || !(inner || inside(z, extent.layers()))) return;
      for (int c = 0; c < D; ++c)
        store(row_of(own, z, extent.layer) + c * extent.voxels, sum.of[c]);
    };
    march<kLayers<D>>(place.first - 1, place.end, cells.layers(), read, step);
  }
}

}  // namespace

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const S* displacement, Arithmetic<S>* determinant,
                    void* stream) {
  const CellStrips<D> strips(problem.samples, problem.size);
  const auto launch = [&](auto reduce) {
    DIFFREG_LAUNCH((forward_kernel<D, S, decltype(reduce)::value>), strips.count(), block_shape(),
                   stream, problem.reduce, strips, cells_of(problem), displacement, determinant);
  };
  if (problem.reduce == Reduce::none) return launch(Constant<Reduce::none>());
  if constexpr (D == 3) {  // in an image the bound is the smallest corner
    if (problem.reduce == Reduce::bound) return launch(Constant<Reduce::bound>());
  }
  launch(Constant<Reduce::min>());
}

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Arithmetic<S>* gradient,
                     const S* displacement, S* grad_displacement, void* stream) {
  const VertexStrips<D> strips(problem.samples, problem.size);
  const auto launch = [&](auto reduce) {
    DIFFREG_LAUNCH((backward_kernel<D, S, decltype(reduce)::value>), strips.count(), block_shape(),
                   stream, problem.reduce, strips, cells_of(problem), gradient, displacement,
                   grad_displacement);
  };
  if (problem.reduce == Reduce::none) return launch(Constant<Reduce::none>());
  launch(Constant<Reduce::min>());
}

#define DIFFREG_INSTANCES(D, S)                                                     \
  template void launch_forward(const Problem<D>&, const S*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem<D>&, const Arithmetic<S>*, const S*, S*, void*);
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)

}  // namespace diffreg::jacobian_determinant
