// CPU driver of diffreg::correlation and diffreg::correlation_backward.
#include "correlation_cpu.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../common/cpu_driver.h"
#include "piece_moments.h"

namespace diffreg::correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
}

// Calls run(first voxel, voxels, warped, fixed, weights or null) for a strip of every channel. Its
// rows are one behind the other, the mask's too: no voxel needs to know its row.
template <typename T, typename Run>
void for_channels(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask, int64_t n,
                  int64_t first, int64_t end, const Run& run) {
  const int64_t C = warped.size(1), W = width_of(warped), rows = rows_of(warped);
  for (int64_t c = 0; c < C; ++c) {
    const int64_t at = ((n * C + c) * rows + first) * W;
    run(at, (end - first) * W, warped.const_data_ptr<T>() + at, fixed.const_data_ptr<T>() + at,
        mask.row(n, first));
  }
}

// Of every sample.
template <typename T>
std::vector<Moments> measured(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask) {
  const int64_t N = warped.size(0), rows = rows_of(warped), W = width_of(warped);
  const int64_t strips = strip_count(rows);
  std::vector<Moments> moments(N, Moments{});
  if (warped.numel() == 0) return moments;
  std::vector<PartMoments> parts(N * strips);
  for_each_strip(N, rows, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    for_channels<T>(warped, fixed, mask, n, first, end,
                    [&](int64_t, int64_t voxels, const T* w, const T* r, const T* m) {
                      add_voxels(w, r, m, voxels, parts[n * strips + strip]);
                    });
  });
  for (int64_t n = 0; n < N; ++n) {
    PartMoments whole;
    for (int64_t strip = 0; strip < strips; ++strip) whole.add(parts[n * strips + strip]);
    moments[n] = whole.moments(std::numeric_limits<T>::epsilon());
  }
  return moments;
}

// Writes every sample's gradient times its factor to those of the two that are not null, or adds
// it.
template <bool adds, typename T>
void fill_gradients(const Tensor& warped, const Tensor& fixed, const Mask<T>& weights,
                    const std::vector<Moments>& moments, const std::vector<double>& factors,
                    T* to_warped, T* to_fixed) {
  const auto run_strip = [&](int64_t n, int64_t, int64_t first, int64_t end) {
    const Moments moment = moments[n];
    const double factor = factors[n], by_other = moment.slope_by_other();
    const double by_own_w = moment.slope_by_own(moment.warped_warped);
    const double by_own_r = moment.slope_by_own(moment.fixed_fixed);
    const double mean_w = moment.mean_warped, mean_r = moment.mean_fixed;
    const auto fill_strip = [&](int64_t at, int64_t voxels, const T* warped_at, const T* fixed_at,
                                const T* m) {
      with_weights(m, [&](const auto& weight) {
        // The gradient to the image whose voxels are `own`.
        const auto fill = [&](T* out, const T* own, double mean_own, double by_own, const T* other,
                              double mean_other) {
#pragma GCC ivdep
          for (int64_t x = 0; x < voxels; ++x) {
            const double pull = (own[x] - mean_own) * by_own;
            const double push = (other[x] - mean_other) * by_other;
            const T value = static_cast<T>(factor * weight(x) * visible(pull - push, weight(x)));
            out[x] = adds ? out[x] + value : value;
          }
        };
        if (to_warped) fill(to_warped + at, warped_at, mean_w, by_own_w, fixed_at, mean_r);
        if (to_fixed) fill(to_fixed + at, fixed_at, mean_r, by_own_r, warped_at, mean_w);
      });
    };
    for_channels<T>(warped, fixed, weights, n, first, end, fill_strip);
  };
  for_each_strip(warped.size(0), rows_of(warped), width_of(warped), run_strip);
}

// The moments go to the backward pass, which then needs no reduction.
std::tuple<Tensor, Tensor> forward(const Tensor& warped, const Tensor& fixed,
                                   std::optional<Tensor> mask) {
  check(warped, fixed);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const int64_t N = w.size(0);
  std::vector<double> values(N);
  Tensor moments = torch::stable::new_empty(w, {N, kMoments}, ScalarType::Double);
  dispatch_floating("warped", w, [&](auto zero) {
    const auto found = measured(w, r, Mask<decltype(zero)>(mask, w));
    for (int64_t n = 0; n < N; ++n) {
      values[n] = found[n].value();
      const double all[kMoments] = {found[n].mean_warped, found[n].mean_fixed,
                                    found[n].warped_warped, found[n].fixed_fixed, found[n].product};
      std::copy_n(all, kMoments, moments.mutable_data_ptr<double>() + n * kMoments);
    }
  });
  return {new_scalars("warped", w, values), moments};
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moments,
                                    const Tensor& warped, const Tensor& fixed,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  check(warped, fixed);
  const auto factors = scalars_of("gradient", gradient, warped);
  check_shape("moments", moments, {warped.size(0), kMoments});
  check_dtype("moments", moments, ScalarType::Double);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor held = torch::stable::contiguous(moments);
  Tensor grad_warped = gradient_like(w, need_warped), grad_fixed = gradient_like(r, need_fixed);
  if (w.numel() == 0) return {grad_warped, grad_fixed};
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    std::vector<Moments> all;
    for (int64_t n = 0; n < w.size(0); ++n) {
      const double* from = held.const_data_ptr<double>() + n * kMoments;
      all.push_back({from[0], from[1], from[2], from[3], from[4]});
    }
    fill_gradients<false>(w, r, Mask<T>(mask, w), all, factors,
                          need_warped ? grad_warped.mutable_data_ptr<T>() : nullptr,
                          need_fixed ? grad_fixed.mutable_data_ptr<T>() : nullptr);
  });
  return {grad_warped, grad_fixed};
}

}  // namespace

std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient) {
  std::vector<double> values(inputs.warped.size(0));
  dispatch_floating("warped", inputs.warped, [&](auto zero) {
    using T = decltype(zero);
    const Mask<T> weights(inputs.mask, inputs.warped);
    const auto moments = measured(inputs.warped, inputs.fixed, weights);
    for (size_t n = 0; n < values.size(); ++n) values[n] = moments[n].value();
    if (!gradient || inputs.warped.numel() == 0) return;
    fill_gradients<true>(inputs.warped, inputs.fixed, weights, moments, factors,
                         gradient->mutable_data_ptr<T>(), static_cast<T*>(nullptr));
  });
  return values;
}

}  // namespace diffreg::correlation

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("correlation", TORCH_BOX(&diffreg::correlation::forward));
  library.impl("correlation_backward", TORCH_BOX(&diffreg::correlation::backward));
}
