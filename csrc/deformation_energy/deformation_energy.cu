// E1, E2 and E_det of a displacement field, their gradient, or both in one pass over it: warps
// march along its columns, every difference and every cell is computed once.
#include "../common/block_reduce.h"
#include "deformation_energy_cuda.h"
#include "energy_columns.h"

namespace diffreg::deformation_energy {
namespace {

enum class Mode { value, gradient, both };
// What a launch does: all, or the quadratic energies first and then the cells, which adds to their
// gradient. Registers hold all of it but for the gradient of a volume in double.
enum class Part { all, smoothness, cells };
template <int D, typename T>
constexpr bool kInParts = D == 3 && sizeof(T) == 8;

// Halos: second differences reach one voxel to either side. What flows to a voxel comes from the
// one before, whose second differences reach further, and what a cell gives, too.
template <int D, Mode mode>
struct StripsOf {
  using type = Strips<D, 2, 2, 1, 1, 0>;
};
template <int D>
struct StripsOf<D, Mode::value> {
  using type = Strips<D, 1, 1, 0>;
};

// What a launch works on, in the type of the arithmetic.
template <int D, typename S, Mode mode>
struct Task {
  using T = Arithmetic<S>;
  typename StripsOf<D, mode>::type strips;
  Slopes<D, T> factor;  // of the squares
  PenaltyKind penalty;
  T threshold;
  Upstream<T> upstream;
  bool zero_is_unused;    // of the determinant's upstream gradient
  const S* displacement;  // (N, D, *S)

  Task(const Problem<D>& problem, const Upstream<T>& gradients, bool zero_is_unused, const S* field)
      : strips(problem.samples, problem.size),
        factor(problem.factor, 0.5, 0.5, 1),
        penalty(problem.penalty),
        threshold(static_cast<T>(problem.threshold)),
        upstream(gradients),
        zero_is_unused(zero_is_unused),
        displacement(field) {}
};

// Upstream gradients of a sample, those of squares doubled. An energy that was not used adds
// nothing, not even NaN.
template <typename T>
struct Used {
  T diffusion = 0, bending = 0, determinant = 0;
  bool diffuses, bends, folds;

  DIFFREG_DEVICE Used(const Upstream<T>& upstream, int64_t n)
      : diffuses(upstream.diffusion), bends(upstream.bending), folds(upstream.determinant) {
    if (diffuses) diffusion = 2 * load(upstream.diffusion + n);
    if (bends) bending = 2 * load(upstream.bending + n);
    if (folds) determinant = load(upstream.determinant + n);
  }
};

// One column of a field: the energies of the layers of a strip, and their gradient.
template <int D, typename S, Mode mode, Part part>
class EnergyColumn {
  using T = Arithmetic<S>;
  static constexpr bool kValued = mode != Mode::gradient, kDifferentiates = mode != Mode::value;

 public:
  T energy[3] = {};  // not those of a halo's layer

  DIFFREG_DEVICE EnergyColumn(const Task<D, S, mode>& task, int64_t n)
      : task_(task), used_(task.upstream, n) {
    if (task.zero_is_unused) used_.folds &= used_.determinant != 0;
  }

  // Adds a layer; whether its energies count.
  DIFFREG_DEVICE void add(Window<D, S>& window, const Reach<D>& reach, bool counts) {
    if constexpr (kDifferentiates) scatter_.move_on();
    for (int c = 0; c < D && part != Part::cells; ++c) {
      const Differences<D, T> d = window.differences(reach, c);
      if (kValued && counts) add_squares(d, c);
      if constexpr (kDifferentiates) add_flow(d, c);
    }
    if (part != Part::smoothness && (kValued || used_.folds)) {
      add_cell(window.cell(), reach.has_cell(), counts);
    }
  }
  DIFFREG_DEVICE Components<D, T> gradient() { return scatter_.collect(); }

 private:
  DIFFREG_DEVICE void add_squares(const Differences<D, T>& d, int c) {
    const auto square = [](T factor, T difference) { return factor * difference * difference; };
    for (int k = 0; k < D; ++k) {
      energy[0] += square(task_.factor.first[k][c], d.first[k]);
      energy[1] += square(task_.factor.second[k][c], d.second[k]);
    }
    for (int p = 0; p < kPairs<D>; ++p) {
      energy[1] += square(task_.factor.mixed[p][c], d.mixed[p]);
    }
  }

  // Flux form: the quadratic energies' gradient is what flows in less what flows out.
  DIFFREG_DEVICE void add_flow(const Differences<D, T>& d, int c) {
    for (int k = 0; k < D; ++k) {
      T amount = 0;
      if (used_.diffuses) amount = used_.diffusion * (task_.factor.first[k][c] * d.first[k]);
      if (used_.bends) {
        T bent = task_.factor.second[k][c] * (d.second[k] - d.next_second[k]);
        for (int l = 0; l < k; ++l) {
          const int p = pair_of(l, k);
          bent += task_.factor.mixed[p][c] * (d.mixed_before[p] - d.mixed[p]);
        }
        amount += used_.bending * bent;
      }
      scatter_.flow(k, c, amount);
    }
  }

  DIFFREG_DEVICE void add_cell(const Cell<D, T>& cell, bool exists, bool counts) {
    T corner[1 << D];
    cell.determinants(corner);
    const T factor = exists ? task_.factor.corner : T(0);
    with_penalty(task_.penalty, task_.threshold, [&](const auto& psi) {
      T sum = 0;
      for (int k = 0; k < 1 << D; ++k) {
        if constexpr (kValued) sum += psi.value(corner[k]);
        if constexpr (kDifferentiates) {
          corner[k] = factor * used_.determinant * psi.slope(corner[k]);
        }
      }
      if (kValued && counts && exists) energy[2] += factor * sum;
    });
    if (kDifferentiates && used_.folds) scatter_.add(cell, corner);
  }

  const Task<D, S, mode>& task_;
  Used<T> used_;
  Scatter<D, T> scatter_;
};

// Blocks of a multiprocessor for which registers must do.
template <int D, typename T, Mode mode>
constexpr int kBlocks =
    sizeof(T) == 8 ? 1 : (mode == Mode::value ? (D == 2 ? 3 : 2) : (D == 2 ? 2 : 1));

template <int D, typename S, typename O, Mode mode, Part part>
__global__ void __launch_bounds__(kThreads, (kBlocks<D, Arithmetic<S>, mode>))
    energy_kernel(Task<D, S, mode> task, Reduction reduction, Energies<Arithmetic<S>> energies,
                  O* gradient) {  // (N, D, *S)
  using T = Arithmetic<S>;
  const auto& strips = task.strips;
  const Extent<D>& extent = strips.extent;
  const int32_t layers = extent.layers(), halo = mode == Mode::value ? 0 : 1;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.image;
    const Surroundings<D, S> field(task.displacement, n, extent, place.column);
    Reach<D> reach(extent, place.column);
    Window<D, S> window(field, reach, place.first - halo, layers);
    EnergyColumn<D, S, mode, part> column(task, n);
    O* own = gradient + D * n * extent.voxels + place.column.offset(extent);
    const auto read = [&](int32_t z, bool inner) { return field.at(reach, z, inner); };
    const auto step = [&](int32_t z, const typename Surroundings<D, S>::Layer& layer, bool inner) {
      window.move_on(layer);
      reach.move_to(z, layers, inner);
      const bool here = z >= place.first && (inner || z < place.end);
      column.add(window, reach, here);
      if constexpr (mode != Mode::value) {
        const Components<D, T> sum = column.gradient();
        if (!place.owns || !here) return;
        for (int c = 0; c < D; ++c) {
          O* to = row_of(own, z, extent.layer) + c * extent.voxels;
          store(to, part == Part::cells ? load(to) + sum.of[c] : sum.of[c]);
        }
      }
    };
    if constexpr (D == 2) {
      march(place.first - halo, place.end, layers - 2, read, step);
    } else if constexpr (sizeof(T) == 4 && mode != Mode::value) {
      march_prefetched(place.first - halo, place.end, layers - 2, read, step);
    } else {
      march<1>(place.first - halo, place.end, layers - 2, read, step);
    }
    if constexpr (mode != Mode::gradient) {
      double sums[3];
      for (int k = 0; k < 3; ++k) sums[k] = place.owns ? double(column.energy[k]) : 0;
      // Its barriers also part this tile from the next.
      reduce_tiles(reduction, sums, n, place.within, strips.per_image, [&](const double* total) {
        store(energies.diffusion + n, static_cast<T>(total[0]));
        store(energies.bending + n, static_cast<T>(total[1]));
        store(energies.determinant + n, static_cast<T>(total[2]));
      });
    }
  }
}

template <Mode mode, Part part = Part::all, int D, typename S, typename O>
void launch(const Task<D, S, mode>& task, const Reduction& reduction,
            const Energies<Arithmetic<S>>& energies, O* gradient, void* stream) {
  DIFFREG_LAUNCH((energy_kernel<D, S, O, mode, part>), task.strips.count(), block_shape(), stream,
                 task, reduction, energies, gradient);
}

template <Mode mode, int D>
int64_t doubles_of(const Problem<D>& problem) {
  const typename StripsOf<D, mode>::type strips(problem.samples, problem.size);
  return reduction_doubles(problem.samples, 3, strips.per_image);
}

template <Mode mode, int D, typename S>
Reduction reduction_of(const Task<D, S, mode>& task, double* workspace, void* stream) {
  return make_reduction(workspace, task.strips.images, 3, task.strips.per_image, stream);
}

template <int D, typename S, typename O>
void launch_gradient(const Task<D, S, Mode::gradient>& task, O* gradient, void* stream) {
  if constexpr (kInParts<D, Arithmetic<S>>) {
    launch<Mode::gradient, Part::smoothness>(task, {}, {}, gradient, stream);
    launch<Mode::gradient, Part::cells>(task, {}, {}, gradient, stream);
  } else {
    launch<Mode::gradient>(task, {}, {}, gradient, stream);
  }
}

}  // namespace

template <int D>
int64_t forward_doubles(const Problem<D>& problem) {
  return doubles_of<Mode::value>(problem);
}

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const S* displacement, double* workspace,
                    const Energies<Arithmetic<S>>& energies, void* stream) {
  const Task<D, S, Mode::value> task(problem, {}, false, displacement);
  launch<Mode::value>(task, reduction_of(task, workspace, stream), energies,
                      static_cast<S*>(nullptr), stream);
}

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                     const S* displacement, S* gradient, void* stream) {
  launch_gradient(Task<D, S, Mode::gradient>(problem, upstream, false, displacement), gradient,
                  stream);
}

template <typename S, int D>
int64_t both_doubles(const Problem<D>& problem) {
  return doubles_of<kInParts<D, Arithmetic<S>> ? Mode::value : Mode::both>(problem);
}

template <int D, typename S>
void launch_both(const Problem<D>& problem, const Upstream<Arithmetic<S>>& upstream,
                 const S* displacement, double* workspace, const Energies<Arithmetic<S>>& energies,
                 Arithmetic<S>* gradient, void* stream) {
  if constexpr (kInParts<D, Arithmetic<S>>) {
    launch_forward(problem, displacement, workspace, energies, stream);
    launch_gradient(Task<D, S, Mode::gradient>(problem, upstream, true, displacement), gradient,
                    stream);
  } else {
    const Task<D, S, Mode::both> task(problem, upstream, true, displacement);
    launch<Mode::both>(task, reduction_of(task, workspace, stream), energies, gradient, stream);
  }
}

#define DIFFREG_INSTANCES(D, S)                                                                   \
  template void launch_forward(const Problem<D>&, const S*, double*,                              \
                               const Energies<Arithmetic<S>>&, void*);                            \
  template void launch_backward(const Problem<D>&, const Upstream<Arithmetic<S>>&, const S*, S*,  \
                                void*);                                                           \
  template int64_t both_doubles<S>(const Problem<D>&);                                            \
  template void launch_both(const Problem<D>&, const Upstream<Arithmetic<S>>&, const S*, double*, \
                            const Energies<Arithmetic<S>>&, Arithmetic<S>*, void*);
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)
template int64_t forward_doubles(const Problem<2>&);
template int64_t forward_doubles(const Problem<3>&);

}  // namespace diffreg::deformation_energy
