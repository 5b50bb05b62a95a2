// Schema and CPU driver of diffreg::gradient_scale and diffreg::gradient_scale_backward.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "gradient_scale.h"

namespace diffreg::gradient_scale {
namespace {

// eta * mean and the floor of every sample; the scale is the larger one.
struct Scale {
  double mean, floor;
};

template <typename T>
std::vector<Scale> measure(const Tensor& image, double eta, const Mask<T>& mask) {
  const int64_t N = image.size(0), C = image.size(1), H = image.size(2), W = image.size(3);
  const T* data = image.const_data_ptr<T>();
  StripSums<1> sums(N, strip_count(H));
  std::vector<T> largest(N * strip_count(H), T(0));
  for_each_strip(N, H, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    std::vector<T> g0(W), g1(W);
    T& most = largest[n * strip_count(H) + strip];
    for (int64_t c = 0; c < C; ++c) {
      const Plane<T> plane{data + (n * C + c) * H * W, H, W};
      for (int64_t y = first; y < end; ++y) {
        plane.gradient_row(y, g0.data(), g1.data());
        with_weights(mask.row(n, y), [&](const auto& weight) {
          *sums.at(n, strip) += sum_row<T>(0, W, [&](int64_t x) {
            return weight(x) * counted(magnitude(g0[x], g1[x]), weight(x));
          });
        });
        const T* row = plane.row(y);
        for (int64_t x = 0; x < W; ++x) most = std::abs(row[x]) > most ? std::abs(row[x]) : most;
      }
    }
  });
  std::vector<Scale> scales(N);
  for (int64_t n = 0; n < N; ++n) {
    const T* strips = &largest[n * strip_count(H)];
    const double most = *std::max_element(strips, strips + strip_count(H));
    scales[n] = {eta * sums.total(n, 0) * mask.per_voxel(n) / C,
                 floor_of(most, std::numeric_limits<T>::min())};
  }
  return scales;
}

Tensor forward(const Tensor& image, double eta, std::optional<Tensor> mask) {
  check_image("image", image);
  const Tensor input = torch::stable::contiguous(image);
  Tensor scale = torch::stable::new_empty(input, {input.size(0)});
  dispatch_floating("image", input, [&](auto zero) {
    using T = decltype(zero);
    T* out = scale.mutable_data_ptr<T>();
    std::fill(out, out + input.size(0), std::numeric_limits<T>::min());
    if (input.numel() == 0) return;
    const Mask<T> weights(mask, input);
    const auto scales = measure<T>(weights.read(input), eta, weights);
    for (int64_t n = 0; n < input.size(0); ++n) {
      out[n] = static_cast<T>(scales[n].mean < scales[n].floor ? scales[n].floor : scales[n].mean);
    }
  });
  return scale;
}

Tensor backward(const Tensor& gradient, const Tensor& image, double eta,
                std::optional<Tensor> mask) {
  check_image("image", image);
  check_shape("gradient", gradient, {image.size(0)});
  check_dtype("gradient", gradient, image.scalar_type());
  const Tensor input = torch::stable::contiguous(image);
  const Tensor upstream = torch::stable::contiguous(gradient);
  Tensor grad_image = torch::stable::new_zeros(input, input.sizes());
  if (input.numel() == 0) return grad_image;
  dispatch_floating("image", input, [&](auto zero) {
    using T = decltype(zero);
    const int64_t C = input.size(1), H = input.size(2), W = input.size(3);
    const Mask<T> weights(mask, input);
    const Tensor read = weights.read(input);
    const auto scales = measure<T>(read, eta, weights);
    for_each_strip(input.size(0), H, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
      if (scales[n].mean < scales[n].floor) return;  // the floor is a constant
      const T factor =
          static_cast<T>(upstream.const_data_ptr<T>()[n] * eta * weights.per_voxel(n) / C);
      std::vector<T> p0(W), p1(W);
      for (int64_t c = 0; c < C; ++c) {
        const Plane<T> plane{read.const_data_ptr<T>() + (n * C + c) * H * W, H, W};
        T* out = grad_image.mutable_data_ptr<T>() + (n * C + c) * H * W;
        add_image_gradient(H, W, first, end, p0.data(), p1.data(), out,
                           [&](int64_t y, T* g0, T* g1) {
                             plane.gradient_row(y, g0, g1);
                             with_weights(weights.row(n, y), [&](const auto& weight) {
#pragma GCC ivdep
                               for (int64_t x = 0; x < W; ++x) {
                                 const T length = magnitude(g0[x], g1[x]);
                                 const T slope = factor * weight(x);
                                 g0[x] = slope * counted(direction(g0[x], length), weight(x));
                                 g1[x] = slope * counted(direction(g1[x], length), weight(x));
                               }
                             });
                           });
      }
    });
    weights.leave_out_hidden(input, read, grad_image);
  });
  return grad_image;
}

}  // namespace
}  // namespace diffreg::gradient_scale

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("gradient_scale(Tensor image, float eta, Tensor? mask) -> Tensor");
  library.def(
      "gradient_scale_backward(Tensor gradient, Tensor image, float eta, Tensor? mask) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("gradient_scale", TORCH_BOX(&diffreg::gradient_scale::forward));
  library.impl("gradient_scale_backward", TORCH_BOX(&diffreg::gradient_scale::backward));
}
