// Schema and CPU driver of diffreg::parallel_level_sets and diffreg::parallel_level_sets_backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "level_set_rows.h"

namespace diffreg::parallel_level_sets {
namespace {

void check(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
           const Tensor& eps_fixed) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  check_shape("eps_warped", eps_warped, {warped.size(0)});
  check_dtype("eps_warped", eps_warped, warped.scalar_type());
  check_shape("eps_fixed", eps_fixed, {warped.size(0)});
  check_dtype("eps_fixed", eps_fixed, warped.scalar_type());
}

template <typename T>
Plane<T> plane_of(const Tensor& image, int64_t plane) {
  const int64_t H = image.size(2), W = image.size(3);
  return {image.const_data_ptr<T>() + plane * H * W, H, W};
}

Tensor forward(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
               const Tensor& eps_fixed, std::string variant_name, std::optional<Tensor> mask) {
  check(warped, fixed, eps_warped, eps_fixed);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor ew = torch::stable::contiguous(eps_warped),
               er = torch::stable::contiguous(eps_fixed);
  const int64_t N = w.size(0), C = w.size(1), H = w.size(2), W = w.size(3);
  Tensor value = torch::stable::new_zeros(w, {N});
  const auto run = [&]<typename T, Variant variant>(T, Constant<variant>) {
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    const Tensor warped_read = weights.read(w), fixed_read = weights.read(r);
    StripSums<1> sums(N, strip_count(H));
    for_each_strip(N, H, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      const T eps_w = ew.const_data_ptr<T>()[n], eps_r = er.const_data_ptr<T>()[n];
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        const Plane<T> own = plane_of<T>(warped_read, c), other = plane_of<T>(fixed_read, c);
        LevelSetRows<T, variant, const Plane<T>> rows(own, other, eps_w, eps_r, first, end);
        for (int64_t y = first; y < end; ++y) {
          *sums.at(n, strip) += rows.value(y, weights.row(n, y));
        }
      }
    });
    T* out = value.mutable_data_ptr<T>();
    for (int64_t n = 0; n < N; ++n) {
      out[n] = static_cast<T>(sums.total(n, 0) * weights.per_voxel(n) / C);
    }
  };
  dispatch_variant(parse("variant", variant_name, kVariants), [&](auto variant) {
    dispatch_floating("warped", w, [&](auto zero) { run(zero, variant); });
  });
  return value;
}

// Gradient to one image; `own` and `other` are the warped and the fixed image or the reverse.
template <typename T, Variant variant>
void gradient_to(const Tensor& own, const Tensor& other, const T* eps_own, const T* eps_other,
                 const T* upstream, const Mask<T>& weights, T* gradient) {
  const int64_t N = own.size(0), C = own.size(1), H = own.size(2), W = own.size(3);
  for_each_strip(N, H, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
    const T factor = static_cast<T>(upstream[n] * weights.per_voxel(n) / C);
    const T eps0 = eps_own[n], eps1 = eps_other[n];
    const auto weights_of = [&](int64_t y) { return weights.row(n, y); };
    for (int64_t c = n * C; c < (n + 1) * C; ++c) {
      const Plane<T> plane = plane_of<T>(own, c);
      LevelSetRows<T, variant, const Plane<T>> rows(plane, plane_of<T>(other, c), eps0, eps1, first,
                                                    end);
      for (int64_t y = first; y < end; ++y) {
        rows.add_gradient(y, factor, weights_of, gradient + (c * H + y) * W);
      }
    }
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, const Tensor& eps_warped,
                                    const Tensor& eps_fixed, std::string variant_name,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  check(warped, fixed, eps_warped, eps_fixed);
  check_shape("gradient", gradient, {warped.size(0)});
  check_dtype("gradient", gradient, warped.scalar_type());
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor ew = torch::stable::contiguous(eps_warped),
               er = torch::stable::contiguous(eps_fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const auto output = [&](bool need) {
    return need ? torch::stable::new_zeros(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  const auto run = [&]<typename T, Variant variant>(T, Constant<variant>) {
    if (w.numel() == 0) return;
    const Mask<T> weights(mask, w);
    const T *eps_w = ew.const_data_ptr<T>(), *eps_r = er.const_data_ptr<T>();
    const Tensor own = weights.read(w), other = weights.read(r);
    const T* g = upstream.const_data_ptr<T>();
    if (need_warped) {
      gradient_to<T, variant>(own, other, eps_w, eps_r, g, weights,
                              grad_warped.mutable_data_ptr<T>());
      weights.leave_out_hidden(w, own, grad_warped);
    }
    if (need_fixed) {
      gradient_to<T, variant>(other, own, eps_r, eps_w, g, weights,
                              grad_fixed.mutable_data_ptr<T>());
      weights.leave_out_hidden(r, other, grad_fixed);
    }
  };
  dispatch_variant(parse("variant", variant_name, kVariants), [&](auto variant) {
    dispatch_floating("warped", w, [&](auto zero) { run(zero, variant); });
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::parallel_level_sets

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def(
      "parallel_level_sets(Tensor warped, Tensor fixed, Tensor eps_warped, Tensor eps_fixed, "
      "str variant, Tensor? mask) -> Tensor");
  library.def(
      "parallel_level_sets_backward(Tensor gradient, Tensor warped, Tensor fixed, "
      "Tensor eps_warped, Tensor eps_fixed, str variant, Tensor? mask, bool need_warped, "
      "bool need_fixed) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("parallel_level_sets", TORCH_BOX(&diffreg::parallel_level_sets::forward));
  library.impl("parallel_level_sets_backward", TORCH_BOX(&diffreg::parallel_level_sets::backward));
}
