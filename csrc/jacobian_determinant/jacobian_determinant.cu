// Corner determinants of every cell, and the gradient that each vertex gathers from its four cells.
// A block holds a tile of the field with its halo. Called by jacobian_determinant_cuda.cpp.
#include "../common/cell_tile.h"
#include "jacobian_determinant_cuda.h"

namespace diffreg::jacobian_determinant {
namespace {

template <typename S>
using FieldTiles = Tiles<kTileColumns<S>, kTileRows>;

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, FieldTiles<S> tiles,
                   const S* displacement,  // (N, 2, H, W)
                   // (N, 4, H-1, W-1), or (N, H-1, W-1) where reduced
                   Arithmetic<S>* determinant) {
  using T = Arithmetic<S>;
  using Shared = FieldTile<S, kTileColumns<S> + 1, kTileRows + 1>;
  DIFFREG_SHARED(Shared, tile);
  const int64_t rows = problem.height - 1, columns = problem.width - 1;
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    __syncthreads();  // the last tile has been read
    tile.fill(displacement + 2 * place.plane * problem.height * problem.width, problem.height,
              problem.width, place.y, place.x);
    __syncthreads();
    for_tile<kTileColumns<S>, kTileRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, rows) || !inside(x, columns)) return;
      T corner[4];
      tile.cell(row, column).determinants(corner);
      const int64_t at = y * columns + x;
      if (problem.reduce != Reduce::none) {
        store(determinant + place.plane * rows * columns + at, reduced(problem.reduce, corner));
        return;
      }
      for (int k = 0; k < 4; ++k) {
        store(determinant + (4 * place.plane + k) * rows * columns + at, corner[k]);
      }
    });
  }
}

// Gradient to the corners of one cell.
template <typename T>
struct ToCorners {
  Reduce reduce;
  int64_t cells;
  int64_t columns;
  const T* gradient;  // (4, H-1, W-1) or (H-1, W-1), of one sample

  DIFFREG_DEVICE void operator()(int64_t y, int64_t x, const Cell<T>& cell, T* corner) const {
    const T* upstream = gradient + y * columns + x;
    if (reduce == Reduce::none) {
      for (int k = 0; k < 4; ++k) corner[k] = load(upstream + k * cells);
    } else {
      cell.determinants(corner);
      spread(reduce, load(upstream), corner);
    }
  }
};

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, FieldTiles<S> tiles,
                    // (N, 4, H-1, W-1), or (N, H-1, W-1) where reduced
                    const Arithmetic<S>* gradient,
                    const S* displacement,   // (N, 2, H, W)
                    S* grad_displacement) {  // (N, 2, H, W)
  using T = Arithmetic<S>;
  using Shared = FieldTile<S, kTileColumns<S> + 2, kTileRows + 2>;
  DIFFREG_SHARED(Shared, tile);
  const int64_t H = problem.height, W = problem.width, cells = (H - 1) * (W - 1);
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    __syncthreads();  // the last tile has been read
    tile.fill(displacement + 2 * place.plane * H * W, H, W, place.y - 1, place.x - 1);
    __syncthreads();
    const int64_t values = (problem.reduce == Reduce::none ? 4 : 1) * cells;
    const ToCorners<T> to_corners{problem.reduce, cells, W - 1, gradient + place.plane * values};
    for_tile<kTileColumns<S>, kTileRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, H) || !inside(x, W)) return;
      T sum[2] = {};
      gather_cells(tile, row + 1, column + 1, H, W, y, x, to_corners, sum);
      for (int c = 0; c < 2; ++c) {
        store(grad_displacement + (2 * place.plane + c) * H * W + y * W + x, sum[c]);
      }
    });
  }
}

template <typename S>
FieldTiles<S> tiles_of(const Problem& problem) {
  return {problem.samples, problem.height, problem.width};
}

}  // namespace

template <typename S>
void launch_forward(const Problem& problem, const S* displacement, Arithmetic<S>* determinant,
                    void* stream) {
  const auto tiles = tiles_of<S>(problem);
  DIFFREG_LAUNCH(forward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles,
                 displacement, determinant);
}

template <typename S>
void launch_backward(const Problem& problem, const Arithmetic<S>* gradient, const S* displacement,
                     S* grad_displacement, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  DIFFREG_LAUNCH(backward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, gradient,
                 displacement, grad_displacement);
}

#define DIFFREG_INSTANCES(S)                                                     \
  template void launch_forward(const Problem&, const S*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem&, const Arithmetic<S>*, const S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::jacobian_determinant
