// Schema and CPU driver of diffreg::local_correlation and diffreg::local_correlation_backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/box_sum.h"
#include "../common/mask.h"
#include "local_correlation.h"

namespace diffreg::local_correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed, int64_t window) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  STD_TORCH_CHECK(window > 0 && window % 2 == 1, "window must be odd and positive, got ", window);
}

// One channel of both images, and the moments of the window around each voxel.
template <typename T>
struct Planes {
  const T* warped;  // (H, W)
  const T* fixed;   // (H, W)
  int64_t height, width, radius;

  // take(block, y, x, window)
  template <typename Take>
  void for_windows(const Take& take) const {
    box_sums<5>(
        height, width, radius,
        [&](int64_t y, int64_t x, double* terms) {
          image_terms(warped[y * width + x], fixed[y * width + x], terms);
        },
        [&](int64_t block, int64_t y, int64_t x, const double* sums) {
          const double count =
              double(window_count(y, radius, height) * window_count(x, radius, width));
          take(block, y, x, Window(sums, count));
        });
  }
};

template <typename T>
Planes<T> planes(const Tensor& warped, const Tensor& fixed, int64_t plane, int64_t window) {
  const int64_t H = warped.size(2), W = warped.size(3);
  const int64_t at = plane * H * W;
  // A window reaches no further than the image, however large it was asked for.
  const int64_t radius = std::min(window / 2, std::max(H, W));
  return {warped.const_data_ptr<T>() + at, fixed.const_data_ptr<T>() + at, H, W, radius};
}

Tensor forward(const Tensor& warped, const Tensor& fixed, int64_t window,
               std::optional<Tensor> mask) {
  check(warped, fixed, window);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const int64_t N = w.size(0), C = w.size(1);
  Tensor value = torch::stable::new_zeros(w, {N});
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    StripSums<1> sums(N, column_blocks(w.size(3)));
    for (int64_t plane = 0; plane < N * C; ++plane) {
      const int64_t n = plane / C;
      planes<T>(w, r, plane, window)
          .for_windows([&](int64_t block, int64_t y, int64_t x, const Window& here) {
            const T* m = weights.row(n, y);
            *sums.at(n, block) += m ? m[x] * here.value() : here.value();
          });
    }
    T* out = value.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n) {
      out[n] = static_cast<T>(sums.total(n, 0) * weights.per_voxel(n) / C);
    }
  });
  return value;
}

// Gradients of one plane: box sums of every window's gradient_terms.
template <typename T>
void gradients(const Planes<T>& plane, const Mask<T>& weights, int64_t n, double factor,
               T* grad_warped,   // (H, W) or null
               T* grad_fixed) {  // (H, W) or null
  const int64_t W = plane.width;
  std::vector<double> parts(5 * plane.height * W);
  plane.for_windows([&](int64_t, int64_t y, int64_t x, const Window& here) {
    const T* m = weights.row(n, y);
    here.gradient_terms(m ? factor * m[x] : factor, &parts[5 * (y * W + x)]);
  });
  box_sums<5>(
      plane.height, W, plane.radius,
      [&](int64_t y, int64_t x, double* terms) { std::copy_n(&parts[5 * (y * W + x)], 5, terms); },
      [&](int64_t, int64_t y, int64_t x, const double* sum) {
        const int64_t at = y * W + x;
        const double w = plane.warped[at], r = plane.fixed[at];
        if (grad_warped) grad_warped[at] = static_cast<T>(gradient_to_warped(sum, w, r));
        if (grad_fixed) grad_fixed[at] = static_cast<T>(gradient_to_fixed(sum, w, r));
      });
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, int64_t window, std::optional<Tensor> mask,
                                    bool need_warped, bool need_fixed) {
  check(warped, fixed, window);
  check_shape("gradient", gradient, {warped.size(0)});
  check_dtype("gradient", gradient, warped.scalar_type());
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const auto output = [&](bool need) {
    return need ? torch::stable::new_empty(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    const int64_t C = w.size(1), voxels = w.size(2) * w.size(3);
    for (int64_t plane = 0; plane < w.size(0) * C; ++plane) {
      const int64_t n = plane / C;
      const double factor = upstream.const_data_ptr<T>()[n] * weights.per_voxel(n) / C;
      gradients<T>(planes<T>(w, r, plane, window), weights, n, factor,
                   need_warped ? grad_warped.mutable_data_ptr<T>() + plane * voxels : nullptr,
                   need_fixed ? grad_fixed.mutable_data_ptr<T>() + plane * voxels : nullptr);
    }
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::local_correlation

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("local_correlation(Tensor warped, Tensor fixed, int window, Tensor? mask) -> Tensor");
  library.def(
      "local_correlation_backward(Tensor gradient, Tensor warped, Tensor fixed, int window, "
      "Tensor? mask, bool need_warped, bool need_fixed) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("local_correlation", TORCH_BOX(&diffreg::local_correlation::forward));
  library.impl("local_correlation_backward", TORCH_BOX(&diffreg::local_correlation::backward));
}
