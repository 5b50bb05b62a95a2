// Schema and CPU driver of diffreg::correlation and diffreg::correlation_backward.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "moment_rows.h"

namespace diffreg::correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
}

// Calls run(y, row of warped, row of fixed, row of weights or null) for the rows of every channel.
template <typename T, typename Run>
void for_rows(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask, int64_t n,
              int64_t first, int64_t end, const Run& run) {
  const int64_t C = warped.size(1), H = warped.size(2), W = warped.size(3);
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t y = first; y < end; ++y) {
      const int64_t at = ((n * C + c) * H + y) * W;
      run(at, warped.const_data_ptr<T>() + at, fixed.const_data_ptr<T>() + at, mask.row(n, y));
    }
  }
}

template <typename T>
void reduce(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask,
            double* moments) {  // (N, 5)
  const int64_t N = warped.size(0), H = warped.size(2), W = warped.size(3);
  std::vector<PartMoments> parts(N * strip_count(H));
  for_each_strip(N, H, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    for_rows<T>(warped, fixed, mask, n, first, end,
                [&](int64_t, const T* w, const T* r, const T* m) {
                  add_row(w, r, m, W, parts[n * strip_count(H) + strip]);
                });
  });
  for (int64_t n = 0; n < N; ++n) {
    PartMoments whole;
    for (int64_t strip = 0; strip < strip_count(H); ++strip) {
      whole.add(parts[n * strip_count(H) + strip]);
    }
    const Moments found = whole.moments(std::numeric_limits<T>::epsilon());
    const double all[kMoments] = {found.mean_warped, found.mean_fixed, found.warped_warped,
                                  found.fixed_fixed, found.product};
    std::copy_n(all, kMoments, moments + n * kMoments);
  }
}

Moments read(const double* from) { return {from[0], from[1], from[2], from[3], from[4]}; }

// The moments go to the backward pass, which then needs no reduction.
std::tuple<Tensor, Tensor> forward(const Tensor& warped, const Tensor& fixed,
                                   std::optional<Tensor> mask) {
  check(warped, fixed);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const int64_t N = w.size(0);
  Tensor value = torch::stable::new_empty(w, {N});
  Tensor moments = torch::stable::new_zeros(w, {N, kMoments}, ScalarType::Double);
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    double* all = moments.mutable_data_ptr<double>();
    if (w.numel() > 0) reduce<T>(w, r, Mask<T>(mask, w), all);
    T* out = value.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n) out[n] = static_cast<T>(read(all + n * kMoments).value());
  });
  return {value, moments};
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moments,
                                    const Tensor& warped, const Tensor& fixed,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  check(warped, fixed);
  check_shape("gradient", gradient, {warped.size(0)});
  check_dtype("gradient", gradient, warped.scalar_type());
  check_shape("moments", moments, {warped.size(0), kMoments});
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor saved = torch::stable::contiguous(moments);
  const auto output = [&](bool need) {
    return need ? torch::stable::new_empty(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  if (w.numel() == 0) return {grad_warped, grad_fixed};
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    const Mask<T> weights(mask, w);
    const int64_t W = w.size(3);
    T* to_w = need_warped ? grad_warped.mutable_data_ptr<T>() : nullptr;
    T* to_r = need_fixed ? grad_fixed.mutable_data_ptr<T>() : nullptr;
    for_each_strip(w.size(0), w.size(2), W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
      const Moments moment = read(saved.const_data_ptr<double>() + n * kMoments);
      const double g = upstream.const_data_ptr<T>()[n], by_other = moment.slope_by_other();
      const double by_own_w = moment.slope_by_own(moment.warped_warped);
      const double by_own_r = moment.slope_by_own(moment.fixed_fixed);
      for_rows<T>(w, r, weights, n, first, end,
                  [&](int64_t at, const T* warped_row, const T* fixed_row, const T* m) {
                    with_weights(m, [&](const auto& weight) {
                      // The gradient to the image whose row is `own`.
                      const auto fill = [&](T* out, const T* own, double mean_own, double by_own,
                                            const T* other, double mean_other) {
#pragma GCC ivdep
                        for (int64_t x = 0; x < W; ++x) {
                          const double pull = (own[x] - mean_own) * by_own;
                          const double push = (other[x] - mean_other) * by_other;
                          out[x] = static_cast<T>(g * weight(x) * visible(pull - push, weight(x)));
                        }
                      };
                      const double mean_w = moment.mean_warped, mean_r = moment.mean_fixed;
                      if (to_w) fill(to_w + at, warped_row, mean_w, by_own_w, fixed_row, mean_r);
                      if (to_r) fill(to_r + at, fixed_row, mean_r, by_own_r, warped_row, mean_w);
                    });
                  });
    });
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::correlation

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("correlation(Tensor warped, Tensor fixed, Tensor? mask) -> (Tensor, Tensor)");
  library.def(
      "correlation_backward(Tensor gradient, Tensor moments, Tensor warped, Tensor fixed, "
      "Tensor? mask, bool need_warped, bool need_fixed) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("correlation", TORCH_BOX(&diffreg::correlation::forward));
  library.impl("correlation_backward", TORCH_BOX(&diffreg::correlation::backward));
}
