// CPU driver of diffreg::jacobian_determinant and
// diffreg::jacobian_determinant_backward.
#include <torch/csrc/stable/library.h>

#include "../common/cell_rows.h"
#include "../common/cpu_driver.h"
#include "../common/parallel.h"
#include "arguments.h"

namespace diffreg::jacobian_determinant {
namespace {

// Where the cells lie in an output: those that start at a row of vertices, and how many in all.
template <int D>
struct CellGrid {
  Grid<D> vertices;
  int64_t cells = 1;

  explicit CellGrid(const Tensor& u) : vertices(u) {
    for (int k = 0; k < D; ++k) cells *= vertices.size[k] - 1;
  }

  int64_t first_cell(int64_t row) const {
    int64_t at = 0;
    for (int k = 0; k < D - 1; ++k) at = at * (vertices.size[k] - 1) + vertices.index(row, k);
    return at * (vertices.width - 1);
  }
};

// Calls run(u as a field, its cells, sample, first, end) for strips of rows of vertices, in
// parallel.
template <int D, typename T, typename Run>
void for_strips(const Tensor& u, const Run& run) {
  const CellGrid<D> grid(u);
  const T* data = u.const_data_ptr<T>();
  for_each_strip(
      u.size(0), grid.vertices.rows, grid.vertices.width,
      [&](int64_t n, int64_t, int64_t first, int64_t end) {
        run(Field<D, T>{data + n * D * grid.vertices.voxels, grid.vertices}, grid, n, first, end);
      },
      grid.vertices.strip_rows());
}

// Calls run(reduce as a type), so that a loop over cells has no choice left in it.
template <typename Run>
void dispatch_reduce(Reduce reduce, const Run& run) {
  dispatch_value<Reduce::none, Reduce::min, Reduce::mean, Reduce::bound>(reduce, run);
}

template <Reduce reduce, int D, typename T>
void fill(const Tensor& u, T* out) {
  for_strips<D, T>(u, [&](const Field<D, T>& field, const CellGrid<D>& grid, int64_t n,
                          int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
      if (!field.grid.starts_cells(row)) continue;
      const VertexRows<D, T> vertices(field, row);
      const int64_t cells = grid.cells;
      T* const values = out + n * kValues<D, reduce> * cells + grid.first_cell(row);
      for_lanes(0, field.grid.width - 1, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
        const Cell<D, T> cell = vertices.cell(x);
        if constexpr (reduce == Reduce::none) {
          T corner[1 << D];
          cell.determinants(corner);
          DIFFREG_UNROLL
          for (int k = 0; k < 1 << D; ++k) values[k * cells + x] = corner[k];
        } else {
          values[x] = reduced(reduce, cell);
        }
      });
    }
  });
}

// Gradient of the cells' values to the vertices.
template <Reduce reduce, int D, typename T>
void add_gradients(const Tensor& u, const T* upstream, T* gradient) {  // zeros
  for_strips<D, T>(u, [&](const Field<D, T>& field, const CellGrid<D>& grid, int64_t n,
                          int64_t first, int64_t end) {
    const auto corners_of = [&](int64_t row) {
      const T* const values = upstream + n * kValues<D, reduce> * grid.cells + grid.first_cell(row);
      return [values, cells = grid.cells](int64_t x, const Cell<D, T>& cell, T* corner) {
        if constexpr (reduce == Reduce::none) {
          DIFFREG_UNROLL
          for (int k = 0; k < kValues<D, reduce>; ++k) corner[k] = values[k * cells + x];
        } else {
          cell.determinants(corner);
          spread<D>(reduce, values[x], corner);
        }
      };
    };
    add_cell_gradients(field, first, end, gradient + n * D * field.grid.voxels, corners_of);
  });
}

Tensor forward(const Tensor& displacement, Text reduce_name) {
  check_displacement(displacement);
  const Reduce reduce = parse("reduce", reduce_name, kReduces);
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor determinant = torch::stable::new_empty(u, output_shape(u, reduce));
  if (determinant.numel() == 0) return determinant;
  dispatch_case("displacement", u, [&]<int D, typename T>() {
    dispatch_reduce(reduce, [&](auto kind) {
      fill<decltype(kind)::value, D>(u, determinant.mutable_data_ptr<T>());
    });
  });
  return determinant;
}

Tensor backward(const Tensor& gradient, const Tensor& displacement, Text reduce_name) {
  check_displacement(displacement);
  const Reduce reduce = parse("reduce", reduce_name, kReduces);
  STD_TORCH_CHECK(reduce != Reduce::bound, "reduce 'bound' has no gradient");
  check_dtype("gradient", gradient, displacement.scalar_type());
  check_shape("gradient", gradient, output_shape(displacement, reduce));
  const Tensor u = torch::stable::contiguous(displacement);
  const Tensor upstream = torch::stable::contiguous(gradient);
  Tensor grad_displacement = torch::stable::new_zeros(u, u.sizes());
  if (upstream.numel() == 0) return grad_displacement;
  dispatch_case("displacement", u, [&]<int D, typename T>() {
    dispatch_reduce(reduce, [&](auto kind) {
      if constexpr (decltype(kind)::value != Reduce::bound) {
        add_gradients<decltype(kind)::value, D>(u, upstream.const_data_ptr<T>(),
                                                grad_displacement.mutable_data_ptr<T>());
      }
    });
  });
  return grad_displacement;
}

}  // namespace
}  // namespace diffreg::jacobian_determinant

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("jacobian_determinant", TORCH_BOX(&diffreg::jacobian_determinant::forward));
  library.impl("jacobian_determinant_backward",
               TORCH_BOX(&diffreg::jacobian_determinant::backward));
}
