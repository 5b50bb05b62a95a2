// Schema and CPU driver of diffreg::local_correlation and diffreg::local_correlation_backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "window_rows.h"

namespace diffreg::local_correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed, int64_t window) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  STD_TORCH_CHECK(window > 0 && window % 2 == 1, "window must be odd and positive, got ", window);
}

template <typename T>
Plane<T> plane_of(const Tensor& image, int64_t plane) {
  const int64_t H = image.size(2), W = image.size(3);
  return {image.const_data_ptr<T>() + plane * H * W, H, W};
}

Tensor forward(const Tensor& warped, const Tensor& fixed, int64_t window,
               std::optional<Tensor> mask) {
  check(warped, fixed, window);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const int64_t N = w.size(0), C = w.size(1), H = w.size(2), W = w.size(3);
  const int64_t radius = radius_of(window, H, W), rows = strip_rows(radius);
  Tensor value = torch::stable::new_zeros(w, {N});
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    const Tensor warped_read = weights.read(w), fixed_read = weights.read(r);
    StripSums<1> sums(N, strip_count(H, rows));
    const auto run = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        const Plane<T> own = plane_of<T>(warped_read, c);
        WindowRows windows(own, plane_of<T>(fixed_read, c), radius, first, end);
        for (int64_t y = first; y < end; ++y) {
          *sums.at(n, strip) += windows.value(y, weights.row(n, y));
        }
      }
    };
    for_each_strip(N, H, W, run, rows);
    T* out = value.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n) {
      out[n] = static_cast<T>(sums.total(n, 0) * weights.per_voxel(n) / C);
    }
  });
  return value;
}

// Gradient to one image; `own` and `other` are the warped and the fixed image or the reverse.
template <typename T>
void gradient_to(const Tensor& own, const Tensor& other, int64_t radius, const T* upstream,
                 const Mask<T>& weights, T* gradient) {  // zeros
  const int64_t N = own.size(0), C = own.size(1), H = own.size(2), W = own.size(3);
  const auto run = [&](int64_t n, int64_t, int64_t first, int64_t end) {
    const double factor = upstream[n] * weights.per_voxel(n) / C;
    const auto weights_of = [&](int64_t y) { return weights.row(n, y); };
    for (int64_t c = n * C; c < (n + 1) * C; ++c) {
      const Plane<T> plane = plane_of<T>(own, c);
      WindowRows windows(plane, plane_of<T>(other, c), radius, first, end);
      for (int64_t y = first; y < end; ++y) {
        windows.add_gradient(y, factor, weights_of, gradient + (c * H + y) * W);
      }
    }
  };
  for_each_strip(N, H, W, run, strip_rows(radius));
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
    return need ? torch::stable::new_zeros(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    const int64_t radius = radius_of(window, w.size(2), w.size(3));
    const T* g = upstream.const_data_ptr<T>();
    const Tensor own = weights.read(w), other = weights.read(r);
    if (need_warped) {
      gradient_to<T>(own, other, radius, g, weights, grad_warped.mutable_data_ptr<T>());
      weights.leave_out_hidden(w, own, grad_warped);
    }
    if (need_fixed) {
      gradient_to<T>(other, own, radius, g, weights, grad_fixed.mutable_data_ptr<T>());
      weights.leave_out_hidden(r, other, grad_fixed);
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
