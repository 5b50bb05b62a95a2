// Schema and CPU driver of diffreg::deformation_energy and diffreg::deformation_energy_backward.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/check.h"
#include "../common/parallel.h"
#include "energy_rows.h"

namespace diffreg::deformation_energy {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& displacement, std::vector<double> spacing,
                                           std::string penalty, double threshold) {
  check_displacement(displacement);
  check_spacing(spacing);
  const PenaltyKind kind = parse("penalty", penalty, kPenalties);
  const Tensor u = torch::stable::contiguous(displacement);
  const int64_t N = u.size(0), H = u.size(2), W = u.size(3);
  Tensor energy[3] = {torch::stable::new_zeros(u, {N}), torch::stable::new_zeros(u, {N}),
                      torch::stable::new_zeros(u, {N})};
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    with_penalty(kind, static_cast<T>(threshold), [&](auto psi) {
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
  check_spacing(spacing);
  const PenaltyKind kind = parse("penalty", penalty, kPenalties);
  const Tensor u = torch::stable::contiguous(displacement);
  const int64_t N = u.size(0), H = u.size(2), W = u.size(3);
  Tensor gradient = torch::stable::new_empty(u, u.sizes());
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    const auto diffusion = upstream<T>("grad_diffusion", grad_diffusion, u);
    const auto bending = upstream<T>("grad_bending", grad_bending, u);
    const auto determinant = upstream<T>("grad_determinant", grad_determinant, u);
    with_penalty(kind, static_cast<T>(threshold), [&](auto psi) {
      if (u.numel() == 0) return;
      const Coefficients factor(H, W, spacing.data());
      for_each_strip(N, H, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
        const Field<T> field{u.const_data_ptr<T>() + n * D * H * W, H, W};
        T* out = gradient.mutable_data_ptr<T>() + n * D * H * W;
        const auto used = [&](const auto& upstream) { return upstream ? (*upstream)[n] : 0; };
        const Slopes<T> slope(factor, used(diffusion), used(bending), used(determinant));
        EnergyGradient<T, decltype(psi)::kKind> rows(field, slope, psi, determinant.has_value(),
                                                     first);
        for (int64_t y = first; y < end; ++y) {
          T* const row[D] = {out + y * W, out + (H + y) * W};
          rows.template row<false>(y, row, factor, nullptr);
        }
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
