// E1, E2 and E_det of a displacement field in one pass over it, and their gradient in another:
// warps march down its columns, every difference and every cell is computed once.
#include "../common/block_reduce.h"
#include "../common/cell_columns.h"
#include "deformation_energy_cuda.h"

namespace diffreg::deformation_energy {
namespace {

// Halos: stencils of the value start at their voxel and reach two further; the gradient's reach two
// back, and its flux and its cells come from the row above.
using ValueStrips = Strips<0, 2, 0>;
using GradientStrips = Strips<2, 2, 1>;

template <typename T>
DIFFREG_DEVICE T squared(T d) {
  return d * d;
}

// Sums of squares, one for each factor.
template <typename T>
struct Sums {
  T first[D][D] = {}, second[D][D] = {}, mixed[D] = {}, corner = 0;

  // Adds the stencils that start at a lane's voxel of row[0]; those that go down where the image
  // has one and two rows more. Whether those along the row are inside is a matter of the column.
  template <typename Psi>
  DIFFREG_DEVICE void add(const FieldRow<T, 2>* row, const Psi& psi, bool one, bool two) {
    for (int c = 0; c < D; ++c) {
      const auto u = [&](int a, int b) { return row[a].u[b][c]; };
      const T right = shuffle_from_right(u(0, 1));
      first[1][c] += squared(u(0, 1) - u(0, 0));
      second[1][c] += squared(second_difference(u(0, 0), u(0, 1), right));
      if (one) {
        first[0][c] += squared(u(1, 0) - u(0, 0));
        mixed[c] += squared(mixed_difference(u(0, 0), u(0, 1), u(1, 0), u(1, 1)));
      }
      if (two) second[0][c] += squared(second_difference(u(0, 0), u(1, 0), u(2, 0)));
    }
    if (!one) return;
    T at[4];
    cell_of(row[0], row[1]).determinants(at);
    corner += (psi.value(at[0]) + psi.value(at[1])) + (psi.value(at[2]) + psi.value(at[3]));
  }

  // The three energies, in double, of a column that has one and two more to its right.
  DIFFREG_DEVICE void weigh(const Coefficients<D>& factor, bool one, bool two,
                            double* energies) const {
    energies[0] = energies[1] = energies[2] = 0;
    for (int c = 0; c < D; ++c) {
      energies[0] += factor.first[0][c] * first[0][c];
      energies[1] += factor.second[0][c] * second[0][c];
      if (one) energies[0] += factor.first[1][c] * first[1][c];
      if (one) energies[1] += factor.mixed[0][c] * mixed[c];
      if (two) energies[1] += factor.second[1][c] * second[1][c];
    }
    if (one) energies[2] = factor.corner * corner;
  }
};

// Blocks of a multiprocessor for which registers must do; a logarithm takes more, and the gradient.
template <typename S, PenaltyKind kind>
constexpr int kValueBlocks = sizeof(Arithmetic<S>) == 8 ? 1 : (kind == PenaltyKind::log2 ? 3 : 4);
template <typename S, PenaltyKind kind>
constexpr int kGradientBlocks = sizeof(Arithmetic<S>) == 8 ? 1 : kValueBlocks<S, kind> - 1;

template <typename S, PenaltyKind kind>
__global__ void __launch_bounds__(kThreads, (kValueBlocks<S, kind>))
    forward_kernel(Problem problem, ValueStrips strips,
                   const S* displacement,  // (N, 2, H, W)
                   Reduction reduction,
                   Arithmetic<S>* diffusion,      // (N)
                   Arithmetic<S>* bending,        // (N)
                   Arithmetic<S>* determinant) {  // (N)
  using T = Arithmetic<S>;
  const Penalty<T, kind> psi{static_cast<T>(problem.threshold)};
  const int32_t H = strips.height, W = strips.width;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const FieldColumn<S> field(displacement, place.plane, H, W, place.x);
    FieldRow<T, 2> row[] = {FieldRow<T, 2>(field.at(place.y)),
                            FieldRow<T, 2>(field.at(place.y + 1)), FieldRow<T, 2>({})};
    Sums<T> sums;
    march(
        place.y, place.end, H - 2, [&](int32_t y, bool inner) { return field.at(y + 2, inner); },
        [&](int32_t y, const Vector<T>& next, bool inner) {
          if (!inner && y >= place.end) return;
          row[2] = FieldRow<T, 2>(next);
          sums.add(row, psi, inner || inside(y + 1, H), inner || inside(y + 2, H));
          row[0] = row[1];
          row[1] = row[2];
        });
    double energies[3] = {0, 0, 0};
    if (place.owns) {
      sums.weigh(problem.factor, inside(place.x + 1, W), inside(place.x + 2, W), energies);
    }
    // Its barriers also part this tile from the next.
    reduce_tiles(reduction, energies, place.plane, place.within, strips.per_plane,
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
struct UsedSlopes : Slopes<D, T> {
  bool diffuses, bends, folds;

  DIFFREG_DEVICE UsedSlopes(const Coefficients<D>& factor, const Upstream<T>& upstream, int64_t n,
                            bool has_cells)
      : Slopes<D, T>(factor, load_or_0(upstream.diffusion, n), load_or_0(upstream.bending, n),
                     load_or_0(upstream.determinant, n)),
        diffuses(upstream.diffusion),
        bends(upstream.bending),
        folds(upstream.determinant && has_cells) {}
};

// What the differences along one axis pass on from a voxel to the next one along it, given those
// that start at the voxel and are centred on it and on the next. The energies' gradient is the
// difference of what comes in and what goes out.
template <typename T>
DIFFREG_DEVICE T flux(const UsedSlopes<T>& slope, int axis, int c, T difference, T second,
                      T next_second) {
  T sum = slope.diffuses ? slope.first[axis][c] * difference : T(0);
  if (slope.bends) sum += slope.second[axis][c] * (second - next_second);
  return sum;
}

// The gradient at a lane's column, row after row as a march comes down it.
template <typename T>
struct Gradient {
  T second[D] = {}, mixed[D] = {}, from_above[D] = {};  // of the last row
  CellScatter<T> scatter{};

  // Gradient to the vertex of row[0], from the field there and one row and two rows below. Whether
  // the image has these rows and the next column, and whether there is a second difference along
  // the row that is centred on the vertex. Where there is no cell, corner_slope is 0.
  template <typename Psi>
  DIFFREG_DEVICE Vector<T> at(const FieldRow<T, 2>* row, const UsedSlopes<T>& slope, const Psi& psi,
                              T corner_slope, bool one_down, bool two_down, bool along,
                              bool centred) {
    T own[D] = {}, right[D] = {};
    if (slope.folds) {
      const Cell<D, T> cell = cell_of(row[0], row[1]);
      T corner[4];
      cell.determinants(corner);
      for (int k = 0; k < 4; ++k) corner[k] = corner_slope * psi.slope(corner[k]);
      scatter.add(cell, corner, own, right);
    }
    Vector<T> sum;
    for (int c = 0; c < D; ++c) {
      const auto u = [&](int a, int b) { return row[a].u[b][c]; };
      const T next_second = two_down ? second_difference(u(0, 0), u(1, 0), u(2, 0)) : T(0);
      const T to_below =
          flux(slope, 0, c, one_down ? u(1, 0) - u(0, 0) : T(0), second[c], next_second);
      const T around = second_difference(shuffle_from_left(u(0, 0)), u(0, 0), u(0, 1));
      const T own_second = centred ? around : T(0);
      T to_right = flux(slope, 1, c, along ? u(0, 1) - u(0, 0) : T(0), own_second,
                        shuffle_from_right(own_second));
      const T own_mixed =
          one_down && along ? mixed_difference(u(0, 0), u(0, 1), u(1, 0), u(1, 1)) : T(0);
      if (slope.bends) to_right += slope.mixed[0][c] * (mixed[c] - own_mixed);
      sum.of[c] =
          (from_above[c] - to_below) + (own[c] - to_right) + shuffle_from_left(right[c] + to_right);
      second[c] = next_second;
      mixed[c] = own_mixed;
      from_above[c] = to_below;
    }
    return sum;
  }
};

template <typename S, PenaltyKind kind>
__global__ void __launch_bounds__(kThreads, (kGradientBlocks<S, kind>))
    backward_kernel(Problem problem, GradientStrips strips, Upstream<Arithmetic<S>> upstream,
                    const S* displacement,  // (N, 2, H, W)
                    S* gradient) {          // (N, 2, H, W)
  using T = Arithmetic<S>;
  using Psi = Penalty<T, kind>;
  const Psi psi{static_cast<T>(problem.threshold)};
  const int32_t H = strips.height, W = strips.width;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.plane, voxels = problem.height * problem.width;
    const FieldColumn<S> field(displacement, n, H, W, place.x);
    S* own = gradient + n * D * voxels + place.x;
    const UsedSlopes<T> slope(problem.factor, upstream, n, H > 1 && W > 1);
    Gradient<T> column;
    FieldRow<T, 2> row[] = {FieldRow<T, 2>(field.at(place.y - 1)),
                            FieldRow<T, 2>(field.at(place.y)), FieldRow<T, 2>({})};
    const Vector<T> before = field.at(place.y - 2);
    // 0 above the image, where rows repeat.
    for (int c = 0; c < D; ++c) {
      column.second[c] = second_difference(before.of[c], row[0].u[0][c], row[1].u[0][c]);
    }
    const bool along = inside(place.x, W - 1), centred = inside(place.x - 1, W - 2);
    const T corner_slope = along ? slope.corner : T(0);
    march(
        place.y - 1, place.end, H - 2,
        [&](int32_t y, bool inner) { return field.at(y + 2, inner); },
        [&](int32_t y, const Vector<T>& next, bool inner) {
          const bool one_down = inner || inside(y, H - 1), two_down = inner || inside(y, H - 2);
          row[2] = FieldRow<T, 2>(next);
          const Vector<T> sum = column.at(row, slope, psi, one_down ? corner_slope : T(0), one_down,
                                          two_down, along, centred);
          row[0] = row[1];
          row[1] = row[2];
          if (!place.owns || y < place.y || (!inner && y >= place.end)) return;
          for (int c = 0; c < D; ++c) {
            store(row_of(own, y, W) + c * voxels, sum.of[c]);
          }
        });
  }
}

template <typename Run>
void dispatch_penalty(PenaltyKind kind, const Run& run) {
  dispatch_value<PenaltyKind::hyperelastic, PenaltyKind::log2, PenaltyKind::hinge,
                 PenaltyKind::relu>(kind, run);
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 3, strips_of<ValueStrips>(problem).per_plane);
}

template <typename S>
void launch_forward(const Problem& problem, const S* displacement, double* workspace,
                    Arithmetic<S>* diffusion, Arithmetic<S>* bending, Arithmetic<S>* determinant,
                    void* stream) {
  const auto strips = strips_of<ValueStrips>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 3, strips.per_plane, stream);
  dispatch_penalty(problem.penalty, [&](auto penalty) {
    DIFFREG_LAUNCH((forward_kernel<S, decltype(penalty)::value>), strips.count(), block_shape(),
                   stream, problem, strips, displacement, reduction, diffusion, bending,
                   determinant);
  });
}

template <typename S>
void launch_backward(const Problem& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement, S* gradient, void* stream) {
  const auto strips = strips_of<GradientStrips>(problem);
  dispatch_penalty(problem.penalty, [&](auto penalty) {
    DIFFREG_LAUNCH((backward_kernel<S, decltype(penalty)::value>), strips.count(), block_shape(),
                   stream, problem, strips, upstream, displacement, gradient);
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
