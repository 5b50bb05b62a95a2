// Schema and CPU driver of diffreg::deformation_energy and diffreg::deformation_energy_backward.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/cell_rows.h"
#include "../common/check.h"
#include "../common/parallel.h"
#include "../common/reduce.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {
namespace {

// The second difference along one axis and the mixed one, on rows that hold them.
template <typename T>
T second(const T* u, int64_t step) {
  return second_difference(u[-step], u[0], u[step]);
}
template <typename T>
T cross(const T* u, int64_t width) {
  return mixed_difference(u[0], u[1], u[width], u[width + 1]);
}

// The three energies of the stencils that start in (or are centred on) row y.
template <typename T, PenaltyKind kind>
void add_row(const Field<T>& field, const Coefficients& factor, Penalty<T, kind> penalty, int64_t y,
             double* energies) {
  const int64_t H = field.height, W = field.width;
  const T* u[D] = {field.row(0, y), field.row(1, y)};
  const auto squared = [](T d) { return d * d; };
  double first0[D] = {}, second0[2 * D] = {}, first1[D] = {}, second1[D] = {},
         cells[2 * D + 1] = {};
  sum_row<T>(
      1, W - 1,
      [&](int64_t x, T* out) {
        for (int c = 0; c < D; ++c) out[c] = squared(second(u[c] + x, 1));
      },
      second1);
  const auto along1 = [&](int64_t x, T* out) {
    for (int c = 0; c < D; ++c) out[c] = squared(u[c][x + 1] - u[c][x]);
  };
  const auto along0 = [&](int64_t x, T* out) {
    for (int c = 0; c < D; ++c) out[c] = squared(u[c][x + W] - u[c][x]);
  };
  if (y + 1 == H) {
    sum_row<T>(0, W - 1, along1, first1);
  } else {
    sum_row<T>(
        0, W - 1,
        [&](int64_t x, T* out) {
          along1(x, out);
          for (int c = 0; c < D; ++c) out[D + c] = squared(cross(u[c] + x, W));
          T corner[4];
          field.cell(y, x).determinants(corner);
          out[2 * D] = (penalty.value(corner[0]) + penalty.value(corner[1])) +
                       (penalty.value(corner[2]) + penalty.value(corner[3]));
        },
        cells);
    if (y == 0) {
      sum_row<T>(0, W, along0, first0);
    } else {
      sum_row<T>(
          0, W,
          [&](int64_t x, T* out) {
            along0(x, out);
            for (int c = 0; c < D; ++c) out[D + c] = squared(second(u[c] + x, W));
          },
          second0);
    }
  }
  for (int c = 0; c < D; ++c) {
    energies[0] += factor.first[1][c] * (first1[c] + cells[c]);
    energies[0] += factor.first[0][c] * (first0[c] + second0[c]);
    energies[1] += factor.second[1][c] * second1[c];
    energies[1] += factor.second[0][c] * second0[D + c];
    energies[1] += factor.mixed[c] * cells[D + c];
  }
  energies[2] += factor.corner * cells[2 * D];
}

// Gradient of the diffusion energy to row y: each difference pulls on both of its ends.
template <typename T>
void diffusion_gradient(const Field<T>& field, const Coefficients& factor, double upstream,
                        int64_t y, T* gradient) {
  const int64_t H = field.height, W = field.width;
  for (int c = 0; c < D; ++c) {
    const T* u = field.row(c, y);
    T* g = gradient + (c * H + y) * W;
    const T along1 = static_cast<T>(2 * upstream * factor.first[1][c]);
    const T along0 = static_cast<T>(2 * upstream * factor.first[0][c]);
    for (int64_t x = 0; x + 1 < W; ++x) g[x] -= along1 * (u[x + 1] - u[x]);
    for (int64_t x = 1; x < W; ++x) g[x] += along1 * (u[x] - u[x - 1]);
    if (y > 0) {
      for (int64_t x = 0; x < W; ++x) g[x] += along0 * (u[x] - u[x - W]);
    }
    if (y + 1 < H) {
      for (int64_t x = 0; x < W; ++x) g[x] -= along0 * (u[x + W] - u[x]);
    }
  }
}

// Gradient of the bending energy to row y: every second difference that reads the row.
template <typename T>
void bending_gradient(const Field<T>& field, const Coefficients& factor, double upstream, int64_t y,
                      T* gradient) {
  const int64_t H = field.height, W = field.width;
  for (int c = 0; c < D; ++c) {
    const T* u = field.row(c, y);
    T* g = gradient + (c * H + y) * W;
    const T along1 = static_cast<T>(2 * upstream * factor.second[1][c]);
    const T along0 = static_cast<T>(2 * upstream * factor.second[0][c]);
    const T mixed = static_cast<T>(2 * upstream * factor.mixed[c]);
    for (int64_t x = 1; x + 1 < W; ++x) g[x] -= 2 * along1 * second(u + x, 1);
    for (int64_t x = 0; x + 2 < W; ++x) g[x] += along1 * second(u + x + 1, 1);
    for (int64_t x = 2; x < W; ++x) g[x] += along1 * second(u + x - 1, 1);
    for (int64_t at = y - 1; at <= y + 1; ++at) {
      if (at < 1 || at + 1 >= H) continue;
      const T* centre = field.row(c, at);
      const T weight = at == y ? -2 * along0 : along0;
      for (int64_t x = 0; x < W; ++x) g[x] += weight * second(centre + x, W);
    }
    for (int64_t at = y - 1; at <= y; ++at) {
      if (at < 0 || at + 1 >= H) continue;
      const T* corner = field.row(c, at);
      const T weight = at == y ? mixed : -mixed;
      for (int64_t x = 0; x + 1 < W; ++x) g[x] += weight * cross(corner + x, W);
      for (int64_t x = 1; x < W; ++x) g[x] -= weight * cross(corner + x - 1, W);
    }
  }
}

// Calls run(Penalty<T, kind>) for the penalty of that name.
template <typename T, typename Run>
void dispatch_penalty(const std::string& name, double threshold, const Run& run) {
  const T eps = static_cast<T>(threshold);
  if (name == "hyperelastic") return run(Penalty<T, PenaltyKind::hyperelastic>{eps});
  if (name == "log2") return run(Penalty<T, PenaltyKind::log2>{eps});
  if (name == "hinge") return run(Penalty<T, PenaltyKind::hinge>{eps});
  if (name == "relu") return run(Penalty<T, PenaltyKind::relu>{eps});
  STD_TORCH_CHECK(false, "penalty must be 'hyperelastic', 'log2', 'hinge' or 'relu', got '", name,
                  "'");
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& displacement, std::vector<double> spacing,
                                           std::string penalty, double threshold) {
  check_displacement(displacement);
  STD_TORCH_CHECK(spacing.size() == D, "spacing must have ", D, " values, got ", spacing.size());
  const Tensor u = torch::stable::contiguous(displacement);
  const int64_t N = u.size(0), H = u.size(2), W = u.size(3);
  Tensor energy[3] = {torch::stable::new_zeros(u, {N}), torch::stable::new_zeros(u, {N}),
                      torch::stable::new_zeros(u, {N})};
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    dispatch_penalty<T>(penalty, threshold, [&](auto psi) {
      if (u.numel() == 0) return;
      const Coefficients factor(H, W, spacing.data());
      StripSums<3> sums(N, strip_count(H));
      for_each_strip(N, H, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
        const Field<T> field{u.const_data_ptr<T>() + n * D * H * W, H, W};
        for (int64_t y = first; y < end; ++y) add_row(field, factor, psi, y, sums.at(n, strip));
      });
      for (int k = 0; k < 3; ++k) {
        T* out = energy[k].mutable_data_ptr<T>();
        for (int64_t n = 0; n < N; ++n) out[n] = static_cast<T>(sums.total(n, k));
      }
    });
  });
  return {energy[0], energy[1], energy[2]};
}

// Upstream gradient of each sample, or nothing where that energy was not used.
template <typename T>
std::optional<std::vector<double>> upstream(const char* name, const std::optional<Tensor>& gradient,
                                            const Tensor& displacement) {
  if (!gradient) return std::nullopt;
  check_shape(name, *gradient, {displacement.size(0)});
  check_dtype(name, *gradient, displacement.scalar_type());
  const Tensor values = torch::stable::contiguous(*gradient);
  const T* data = values.const_data_ptr<T>();
  return std::vector<double>(data, data + displacement.size(0));
}

Tensor backward(std::optional<Tensor> grad_diffusion, std::optional<Tensor> grad_bending,
                std::optional<Tensor> grad_determinant, const Tensor& displacement,
                std::vector<double> spacing, std::string penalty, double threshold) {
  check_displacement(displacement);
  STD_TORCH_CHECK(spacing.size() == D, "spacing must have ", D, " values, got ", spacing.size());
  const Tensor u = torch::stable::contiguous(displacement);
  const int64_t N = u.size(0), H = u.size(2), W = u.size(3);
  Tensor gradient = torch::stable::new_zeros(u, u.sizes());
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    const auto diffusion = upstream<T>("grad_diffusion", grad_diffusion, u);
    const auto bending = upstream<T>("grad_bending", grad_bending, u);
    const auto determinant = upstream<T>("grad_determinant", grad_determinant, u);
    dispatch_penalty<T>(penalty, threshold, [&](auto psi) {
      if (u.numel() == 0) return;
      const Coefficients factor(H, W, spacing.data());
      for_each_strip(N, H, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
        const Field<T> field{u.const_data_ptr<T>() + n * D * H * W, H, W};
        T* out = gradient.mutable_data_ptr<T>() + n * D * H * W;
        for (int64_t y = first; y < end; ++y) {
          if (diffusion) diffusion_gradient(field, factor, (*diffusion)[n], y, out);
          if (bending) bending_gradient(field, factor, (*bending)[n], y, out);
        }
        if (!determinant) return;
        const T scale = static_cast<T>((*determinant)[n] * factor.corner);
        add_cell_gradients(field, first, end, out,
                           [&](int64_t, int64_t, const Cell<T>& cell, T* corner) {
                             cell.determinants(corner);
                             for (int k = 0; k < 4; ++k) corner[k] = scale * psi.slope(corner[k]);
                           });
      });
    });
  });
  return gradient;
}

}  // namespace
}  // namespace diffreg::deformation_energy

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def(
      "deformation_energy(Tensor displacement, float[] spacing, str penalty, float threshold) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "deformation_energy_backward(Tensor? grad_diffusion, Tensor? grad_bending, "
      "Tensor? grad_determinant, Tensor displacement, float[] spacing, str penalty, "
      "float threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("deformation_energy", TORCH_BOX(&diffreg::deformation_energy::forward));
  library.impl("deformation_energy_backward", TORCH_BOX(&diffreg::deformation_energy::backward));
}
