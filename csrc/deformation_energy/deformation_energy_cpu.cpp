// CPU driver of diffreg::deformation_energy and diffreg::deformation_energy_backward.
#include "deformation_energy_cpu.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/cpu_driver.h"
#include "../common/parallel.h"
#include "energy_gradient.h"

namespace diffreg::deformation_energy {
namespace {

// Calls run(field of sample n, its coefficients, penalty, n, strip, first row, end row) for every
// strip, in parallel.
template <typename Run>
void for_strips(const Tensor& u, const Options& options, const Run& run) {
  dispatch_case("displacement", u, [&]<int D, typename T>() {
    with_penalty(options.penalty, static_cast<T>(options.threshold), [&](const auto& psi) {
      const Grid<D> grid(u);
      const Coefficients<D> factor(grid.size, options.spacing.data());
      const T* data = u.const_data_ptr<T>();
      for_each_strip(
          u.size(0), grid.rows, grid.width,
          [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
            const Field<D, T> field{data + n * D * grid.voxels, grid};
            run(field, factor, psi, n, strip, first, end);
          },
          grid.strip_rows());
    });
  });
}

// Sums of a strip's energies, put together in the order of the strips.
class Sums {
 public:
  explicit Sums(const Tensor& u) : samples_(u.size(0)), sums_(samples_, strips_of(u)) {}

  double* at(int64_t sample, int64_t strip) { return sums_.at(sample, strip); }

  std::vector<Energies> total() const {
    std::vector<Energies> energies(samples_);
    for (int64_t n = 0; n < samples_; ++n) {
      for (int k = 0; k < 3; ++k) energies[n][k] = sums_.total(n, k);
    }
    return energies;
  }

 private:
  static int64_t strips_of(const Tensor& u) {
    int64_t count = 0;
    dispatch_dimensions(u, [&](auto dimensions) {
      const Grid<decltype(dimensions)::value> grid(u);
      count = strip_count(grid.rows, grid.strip_rows());
    });
    return count;
  }

  int64_t samples_;
  StripSums<3> sums_;
};

// Upstream gradient of each sample, 0 where that energy was not used.
void upstream(const char* name, const std::optional<Tensor>& gradient, const Tensor& displacement,
              int energy, std::vector<Energies>& factors) {
  if (!gradient) return;
  const auto values = scalars_of(name, *gradient, displacement);
  for (size_t n = 0; n < factors.size(); ++n) factors[n][energy] = values[n];
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& displacement, std::vector<double> spacing,
                                           Text penalty, double threshold) {
  check_displacement(displacement);
  const Options options = parse_options(displacement, spacing, penalty, threshold);
  const Tensor u = torch::stable::contiguous(displacement);
  const auto energies = energies_of(u, options);
  const auto of = [&](int energy) {
    std::vector<double> values;
    for (const Energies& all : energies) values.push_back(all[energy]);
    return new_scalars("displacement", u, values);
  };
  return {of(0), of(1), of(2)};
}

Tensor backward(std::optional<Tensor> grad_diffusion, std::optional<Tensor> grad_bending,
                std::optional<Tensor> grad_determinant, const Tensor& displacement,
                std::vector<double> spacing, Text penalty, double threshold) {
  check_displacement(displacement);
  const Options options = parse_options(displacement, spacing, penalty, threshold);
  const Tensor u = torch::stable::contiguous(displacement);
  std::vector<Energies> factors(u.size(0), Energies{});
  upstream("grad_diffusion", grad_diffusion, u, 0, factors);
  upstream("grad_bending", grad_bending, u, 1, factors);
  upstream("grad_determinant", grad_determinant, u, 2, factors);
  Tensor gradient = torch::stable::new_empty(u, u.sizes());
  const std::vector<char> penalised(u.size(0), grad_determinant.has_value());
  energies_and_gradient(u, options, factors, penalised, false, gradient);
  return gradient;
}

}  // namespace

std::vector<Energies> energies_of(const Tensor& displacement, const Options& options) {
  Sums sums(displacement);
  if (displacement.numel() == 0) return sums.total();
  for_strips(displacement, options,
             [&](const auto& field, const auto& factor, const auto& psi, int64_t n, int64_t strip,
                 int64_t first, int64_t end) {
               for (int64_t row = first; row < end; ++row) {
                 add_row(field, factor, psi, row, sums.at(n, strip));
               }
             });
  return sums.total();
}

std::vector<Energies> energies_and_gradient(const Tensor& displacement, const Options& options,
                                            const std::vector<Energies>& factors,
                                            const std::vector<char>& penalised, bool valued,
                                            Tensor& gradient) {
  Sums sums(displacement);
  if (displacement.numel() == 0) return sums.total();
  for_strips(displacement, options,
             [&]<int D, typename T, PenaltyKind kind>(const Field<D, T>& field,
                                                      const Coefficients<D>& factor,
                                                      const Penalty<T, kind>& psi, int64_t n,
                                                      int64_t strip, int64_t first, int64_t end) {
               const Slopes<D, T> slope(factor, factors[n][0], factors[n][1], factors[n][2]);
               EnergyGradient<D, T, kind> rows(field, slope, psi, penalised[n] != 0, first, end);
               T* out = gradient.mutable_data_ptr<T>() + n * D * field.grid.voxels;
               if (valued) {
                 rows.template run<true>(out, factor, sums.at(n, strip));
               } else {
                 rows.template run<false>(out, factor, nullptr);
               }
             });
  return sums.total();
}

}  // namespace diffreg::deformation_energy

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("deformation_energy", TORCH_BOX(&diffreg::deformation_energy::forward));
  library.impl("deformation_energy_backward", TORCH_BOX(&diffreg::deformation_energy::backward));
}
