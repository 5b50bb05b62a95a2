// E1, E2 and E_det of a displacement field in one pass over it, and their gradient in another. A
// block holds a tile of the field with its halo; every vertex gathers. Called by
// deformation_energy_cuda.cpp.
#include "../common/block_reduce.h"
#include "../common/cell_tile.h"
#include "deformation_energy_cuda.h"

namespace diffreg::deformation_energy {
namespace {

template <typename S>
using FieldTiles = Tiles<kTileColumns<S>, kTileRows>;
// Stencils of the value start at their voxel and reach two further; the gradient's reach two back.
template <typename S>
using ValueTile = FieldTile<S, kTileColumns<S> + 2, kTileRows + 2>;
template <typename S>
using GradientTile = FieldTile<S, kTileColumns<S> + 4, kTileRows + 4>;

template <typename S>
FieldTiles<S> tiles_of(const Problem& problem) {
  return {problem.samples, problem.height, problem.width};
}

// Sums of squares, one for each factor.
template <typename T>
struct Sums {
  T first[D][D] = {}, second[D][D] = {}, mixed[D] = {}, corner = 0;

  // The three energies, in double.
  DIFFREG_DEVICE void weigh(const Coefficients& factor, double* energies) const {
    energies[0] = energies[1] = 0;
    for (int c = 0; c < D; ++c) {
      for (int k = 0; k < D; ++k) {
        energies[0] += factor.first[k][c] * first[k][c];
        energies[1] += factor.second[k][c] * second[k][c];
      }
      energies[1] += factor.mixed[c] * mixed[c];
    }
    energies[2] = factor.corner * corner;
  }
};

template <typename T>
DIFFREG_DEVICE T squared(T d) {
  return d * d;
}

// Adds the stencils that start at voxel (y, x), which is (row, column) of the tile.
template <typename S, typename T, typename Psi>
DIFFREG_DEVICE void add_voxel(const ValueTile<S>& tile, const Problem& problem, const Psi& psi,
                              int64_t y, int64_t x, int row, int column, Sums<T>& sums) {
  const bool one0 = inside(y + 1, problem.height), one1 = inside(x + 1, problem.width);
  const bool two0 = inside(y + 2, problem.height), two1 = inside(x + 2, problem.width);
  for (int c = 0; c < D; ++c) {
    const auto u = [&](int a, int b) { return tile.u[c].at(row + a, column + b); };
    if (one0) sums.first[0][c] += squared(u(1, 0) - u(0, 0));
    if (one1) sums.first[1][c] += squared(u(0, 1) - u(0, 0));
    if (two0) sums.second[0][c] += squared(second_difference(u(0, 0), u(1, 0), u(2, 0)));
    if (two1) sums.second[1][c] += squared(second_difference(u(0, 0), u(0, 1), u(0, 2)));
    if (one0 && one1) {
      sums.mixed[c] += squared(mixed_difference(u(0, 0), u(0, 1), u(1, 0), u(1, 1)));
    }
  }
  if (!one0 || !one1) return;
  T corner[4];
  tile.cell(row, column).determinants(corner);
  sums.corner +=
      (psi.value(corner[0]) + psi.value(corner[1])) + (psi.value(corner[2]) + psi.value(corner[3]));
}

template <typename S, PenaltyKind kind>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, FieldTiles<S> tiles,
                   const S* displacement,  // (N, 2, H, W)
                   Reduction reduction,
                   Arithmetic<S>* diffusion,      // (N)
                   Arithmetic<S>* bending,        // (N)
                   Arithmetic<S>* determinant) {  // (N)
  using T = Arithmetic<S>;
  using Shared = ValueTile<S>;
  DIFFREG_SHARED(Shared, tile);
  const Penalty<T, kind> psi{static_cast<T>(problem.threshold)};
  const int64_t sample_size = D * problem.height * problem.width;
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    tile.fill(displacement + place.plane * sample_size, problem.height, problem.width, place.y,
              place.x);
    __syncthreads();
    Sums<T> sums;
    for_tile<kTileColumns<S>, kTileRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, problem.height) || !inside(x, problem.width)) return;
      add_voxel<S>(tile, problem, psi, y, x, row, column, sums);
    });
    double energies[3];
    sums.weigh(problem.factor, energies);
    // Its barriers also part this tile from the next.
    reduce_tiles(reduction, energies, place.plane, place.within, tiles.per_plane(),
                 [&](const double* total) {
                   store(diffusion + place.plane, static_cast<T>(total[0]));
                   store(bending + place.plane, static_cast<T>(total[1]));
                   store(determinant + place.plane, static_cast<T>(total[2]));
                 });
  }
}

template <typename T>
DIFFREG_DEVICE double load_or_0(const T* upstream, int64_t n) {
  return upstream ? double(load(upstream + n)) : 0;
}

// An energy that was not used adds nothing, not even NaN.
template <typename T>
struct UsedSlopes : Slopes<T> {
  bool diffuses, bends;

  DIFFREG_DEVICE UsedSlopes(const Coefficients& factor, const Upstream<T>& upstream, int64_t n)
      : Slopes<T>(factor, load_or_0(upstream.diffusion, n), load_or_0(upstream.bending, n),
                  load_or_0(upstream.determinant, n)),
        diffuses(upstream.diffusion),
        bends(upstream.bending) {}
};

// What the differences along one axis give the vertex at `at` of an axis of that size; u(k) is the
// component k voxels further along it.
template <typename T, typename Component>
DIFFREG_DEVICE T gather_axis(const UsedSlopes<T>& slope, int axis, int c, int64_t at, int64_t size,
                             const Component& u) {
  const T first = slope.first[axis][c], second = slope.second[axis][c];
  const bool before = inside(at - 1, size), after = inside(at + 1, size);
  T sum = 0;
  if (slope.diffuses && before) sum += first * (u(0) - u(-1));
  if (slope.diffuses && after) sum -= first * (u(1) - u(0));
  if (!slope.bends) return sum;
  if (before && after) sum -= 2 * second * second_difference(u(-1), u(0), u(1));
  if (inside(at + 2, size)) sum += second * second_difference(u(0), u(1), u(2));
  if (inside(at - 2, size)) sum += second * second_difference(u(-2), u(-1), u(0));
  return sum;
}

// What the mixed differences of the four cells around it give the vertex (y, x).
template <typename T, typename Component>
DIFFREG_DEVICE T gather_mixed(T mixed, int64_t y, int64_t x, const Problem& problem,
                              const Component& u) {
  T sum = 0;
  for (int a = 0; a < 2; ++a) {
    for (int b = 0; b < 2; ++b) {
      if (!inside(y - a, problem.height - 1) || !inside(x - b, problem.width - 1)) continue;
      const T difference = mixed_difference(u(-a, -b), u(-a, 1 - b), u(1 - a, -b), u(1 - a, 1 - b));
      sum += (a == b ? mixed : -mixed) * difference;
    }
  }
  return sum;
}

// Gradient to the determinants of a cell.
template <typename Psi, typename T>
DIFFREG_DEVICE void psi_slopes(const Psi& psi, T factor, const Cell<T>& cell, T* corner) {
  cell.determinants(corner);
  for (int k = 0; k < 4; ++k) corner[k] = factor * psi.slope(corner[k]);
}

template <typename S, PenaltyKind kind>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, FieldTiles<S> tiles, Upstream<Arithmetic<S>> upstream,
                    const S* displacement,  // (N, 2, H, W)
                    S* gradient) {          // (N, 2, H, W)
  using T = Arithmetic<S>;
  using Shared = GradientTile<S>;
  DIFFREG_SHARED(Shared, tile);
  const Penalty<T, kind> psi{static_cast<T>(problem.threshold)};
  const int64_t voxels = problem.height * problem.width;
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    const int64_t n = place.plane;
    __syncthreads();  // the last tile has been read
    tile.fill(displacement + n * D * voxels, problem.height, problem.width, place.y - 2,
              place.x - 2);
    __syncthreads();
    const UsedSlopes<T> slope(problem.factor, upstream, n);
    for_tile<kTileColumns<S>, kTileRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, problem.height) || !inside(x, problem.width)) return;
      T sum[D] = {};
      for (int c = 0; c < D; ++c) {
        const auto u = [&](int a, int b) { return tile.u[c].at(row + 2 + a, column + 2 + b); };
        sum[c] = gather_axis(slope, 0, c, y, problem.height, [&](int k) { return u(k, 0); }) +
                 gather_axis(slope, 1, c, x, problem.width, [&](int k) { return u(0, k); });
        if (slope.bends) sum[c] += gather_mixed(slope.mixed[c], y, x, problem, u);
      }
      if (upstream.determinant) {
        gather_cells(
            tile, row + 2, column + 2, problem.height, problem.width, y, x,
            [&](int64_t, int64_t, const Cell<T>& cell, T* corner) {
              psi_slopes(psi, slope.corner, cell, corner);
            },
            sum);
      }
      for (int c = 0; c < D; ++c) {
        store(gradient + (n * D + c) * voxels + y * problem.width + x, sum[c]);
      }
    });
  }
}

template <PenaltyKind value>
struct KindTag {
  static constexpr PenaltyKind kind = value;
};

template <typename Run>
void dispatch_penalty(PenaltyKind kind, const Run& run) {
  switch (kind) {
    case PenaltyKind::hyperelastic: return run(KindTag<PenaltyKind::hyperelastic>{});
    case PenaltyKind::log2: return run(KindTag<PenaltyKind::log2>{});
    case PenaltyKind::hinge: return run(KindTag<PenaltyKind::hinge>{});
    case PenaltyKind::relu: return run(KindTag<PenaltyKind::relu>{});
  }
}

}  // namespace

int64_t forward_doubles(const Problem& problem, size_t voxel_bytes) {
  const Tiles<1, kTileRows> rows{problem.samples, problem.height, 1};
  const int64_t columns = 512 / static_cast<int64_t>(voxel_bytes);
  const int64_t tiles = rows.per_plane() * ((problem.width + columns - 1) / columns);
  return reduction_doubles(problem.samples, 3, tiles);
}

template <typename S>
void launch_forward(const Problem& problem, const S* displacement, double* workspace,
                    Arithmetic<S>* diffusion, Arithmetic<S>* bending, Arithmetic<S>* determinant,
                    void* stream) {
  const auto tiles = tiles_of<S>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 3, tiles.per_plane(), stream);
  dispatch_penalty(problem.penalty, [&](auto tag) {
    DIFFREG_LAUNCH((forward_kernel<S, decltype(tag)::kind>), tiles.count(), block_shape(), stream,
                   problem, tiles, displacement, reduction, diffusion, bending, determinant);
  });
}

template <typename S>
void launch_backward(const Problem& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement, S* gradient, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  dispatch_penalty(problem.penalty, [&](auto tag) {
    DIFFREG_LAUNCH((backward_kernel<S, decltype(tag)::kind>), tiles.count(), block_shape(), stream,
                   problem, tiles, upstream, displacement, gradient);
  });
}

#define DIFFREG_INSTANCES(S)                                                                      \
  template void launch_forward(const Problem&, const S*, double*, Arithmetic<S>*, Arithmetic<S>*, \
                               Arithmetic<S>*, void*);                                            \
  template void launch_backward(const Problem&, const Upstream<Arithmetic<S>>&, const S*, S*,     \
                                void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::deformation_energy
