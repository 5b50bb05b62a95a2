// E1 = sum_k mean |d_k u|^2, E2 = sum_kl mean |d_kl u|^2 on compact stencils, E_det = mean psi(J)
// over the corners of all cells.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"
#include "../common/options.h"

namespace diffreg::deformation_energy {

// Pairs of different axes, numbered (0, 1), (0, 2), (1, 2).
template <int D>
constexpr int kPairs = D * (D - 1) / 2;
DIFFREG_HD constexpr int pair_of(int one, int other) { return one + other - 1; }

// Factor of every squared derivative: the spacing's, over the number of stencil positions.
template <int D>
struct Coefficients {
  double first[D][D];          // [axis][component]
  double second[D][D];         // [axis][component]
  double mixed[kPairs<D>][D];  // [pair][component], both orders of the two axes
  double corner;

  Coefficients(const int64_t* size, const double* h) {
    const auto per = [](double count) { return count > 0 ? 1 / count : 0; };
    // Of a stencil that takes so many voxels less than there are along two axes.
    const auto positions = [&](int axis, int less, int other, int other_less) {
      double count = 1;
      for (int k = 0; k < D; ++k) {
        const int64_t missing = k == axis ? less : (k == other ? other_less : 0);
        count *= double(size[k] > missing ? size[k] - missing : 0);
      }
      return count;
    };
    for (int c = 0; c < D; ++c) {
      for (int k = 0; k < D; ++k) {
        first[k][c] = square(h[c] / h[k]) * per(positions(k, 1, k, 0));
        second[k][c] = square(h[c] / (h[k] * h[k])) * per(positions(k, 2, k, 0));
        for (int l = k + 1; l < D; ++l) {
          mixed[pair_of(k, l)][c] = 2 * square(h[c] / (h[k] * h[l])) * per(positions(k, 1, l, 1));
        }
      }
    }
    double cells = 1;
    for (int k = 0; k < D; ++k) cells *= double(size[k] > 1 ? size[k] - 1 : 0);
    corner = per((1 << D) * cells);
  }

 private:
  static double square(double x) { return x * x; }
};

template <typename T>
DIFFREG_HD T second_difference(T before, T here, T after) {
  return after - 2 * here + before;
}

// u_ab at vertex (a, b) of a cell.
template <typename T>
DIFFREG_HD T mixed_difference(T u00, T u01, T u10, T u11) {
  return u11 - u10 - u01 + u00;
}

// The derivative of every squared difference by it: upstream gradients of the three energies times
// their factors.
template <int D, typename T>
struct Slopes {
  T first[D][D], second[D][D], mixed[kPairs<D>][D], corner;

  DIFFREG_HD Slopes(const Coefficients<D>& factor, double diffusion, double bending,
                    double determinant) {
    for (int c = 0; c < D; ++c) {
      for (int k = 0; k < D; ++k) {
        first[k][c] = static_cast<T>(2 * diffusion * factor.first[k][c]);
        second[k][c] = static_cast<T>(2 * bending * factor.second[k][c]);
      }
      for (int p = 0; p < kPairs<D>; ++p) {
        mixed[p][c] = static_cast<T>(2 * bending * factor.mixed[p][c]);
      }
    }
    corner = static_cast<T>(determinant * factor.corner);
  }
};

enum class PenaltyKind { hyperelastic, log2, hinge, relu };
constexpr Named<PenaltyKind> kPenalties[] = {{"hyperelastic", PenaltyKind::hyperelastic},
                                             {"log2", PenaltyKind::log2},
                                             {"hinge", PenaltyKind::hinge},
                                             {"relu", PenaltyKind::relu}};

// psi(J) above the threshold, its tangent below: the raw hyperelastic psi has a second minimum at
// J = -1 that pulls folds deeper.
template <typename T, PenaltyKind kind>
struct Penalty {
  static constexpr PenaltyKind kKind = kind;
  T threshold;

  DIFFREG_HD T value(T J) const {
    if constexpr (kind == PenaltyKind::hinge)
      return J < threshold ? square(threshold - J) : nan_or_zero(J);
    if constexpr (kind == PenaltyKind::relu) return J < 0 ? -J : nan_or_zero(J);
    const T below = J < threshold ? J - threshold : T(0);
    return raw(floored(J)) + raw_slope(threshold) * below;
  }

  DIFFREG_HD T slope(T J) const {
    if constexpr (kind == PenaltyKind::hinge)
      return J < threshold ? 2 * (J - threshold) : nan_or_zero(J);
    if constexpr (kind == PenaltyKind::relu) return J < 0 ? T(-1) : nan_or_zero(J);
    return raw_slope(floored(J));
  }

 private:
  DIFFREG_HD static T square(T x) { return x * x; }
  DIFFREG_HD static T nan_or_zero(T J) { return J == J ? T(0) : J; }
  DIFFREG_HD T floored(T J) const { return J < threshold ? threshold : J; }

  // Of the hyperelastic psi both need one division, the same.
  DIFFREG_HD static T raw(T J) {
    if constexpr (kind == PenaltyKind::log2) return square(std::log(J));
    return square((J - 1) * plain_quotient(J - 1, J));
  }
  DIFFREG_HD static T raw_slope(T J) {
    if constexpr (kind == PenaltyKind::log2) return plain_quotient(2 * std::log(J), J);
    const T part = plain_quotient(J - 1, J);
    return 2 * part * part * part * (J + 1);
  }
};

// Calls run(psi) with the penalty of that kind.
template <typename T, typename Run>
DIFFREG_HD void with_penalty(PenaltyKind kind, T threshold, const Run& run) {
  switch (kind) {
    case PenaltyKind::hyperelastic: return run(Penalty<T, PenaltyKind::hyperelastic>{threshold});
    case PenaltyKind::log2: return run(Penalty<T, PenaltyKind::log2>{threshold});
    case PenaltyKind::hinge: return run(Penalty<T, PenaltyKind::hinge>{threshold});
    case PenaltyKind::relu: return run(Penalty<T, PenaltyKind::relu>{threshold});
  }
}

}  // namespace diffreg::deformation_energy
