// CPU only: an image sampled where the voxels of a field land, and its derivatives along each axis
// there, line by line of the fixed grid.
#pragma once

#include <cstring>

#include "../common/mask.h"
#include "not_a_number.h"
#include "warp_lanes.h"

namespace diffreg::warp {

template <typename Rule, int D, typename Field, typename T = typename Field::Type>
void forward_linear(const Grids<D>& grids, const Field& field,
                    const T* moving,  // (N or 1, C, *from)
                    T* warped) {      // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, n, row, [&](const Line<D>& line) {
      for (int64_t c = 0; c < grids.channels; ++c) {
        T* out = warped + (n * grids.channels + c) * grids.to_voxels + line.voxel;
        const T* image = moving + n * grids.image_stride + c * grids.from_voxels;
        for_corners<Rule>(grids, field, line, image,
                          [&](int64_t x, const Neighbours<T>* at, const auto& corners)
                              DIFFREG_INLINE_LAMBDA { out[x] = corners.value(at); });
      }
    });
  });
}

// Voxels are copied as bytes, so that every dtype works; as so many that the compiler knows: a copy
// is then a load and a store, not a call.
template <typename Rule, int64_t bytes, int D, typename Field>
void forward_nearest(const Grids<D>& grids, const Field& field,
                     const char* nan,     // (bytes)
                     const char* moving,  // (N or 1, C, *from, bytes)
                     char* warped) {      // (N, C, *to, bytes)
  using T = typename Field::Type;
  for_each_row(grids, [&](int64_t n, int64_t row) {
    const char* image = moving + n * grids.image_stride * bytes;
    char* out = warped + n * grids.channels * grids.to_voxels * bytes;
    for_row<Rule>(grids, field, n, row, [&](int64_t voxel, const Neighbours<T>* at) {
      int64_t from = 0;
      T weight = 1;
      for (int k = 0; k < D; ++k) {
        from += at[k].low * grids.stride[k];
        weight *= at[k].low_weight;
      }
      for (int64_t c = 0; c < grids.channels; ++c) {
        char* to = out + (c * grids.to_voxels + voxel) * bytes;
        const char* value = image + (c * grids.from_voxels + from) * bytes;
        if (weight == 0) {
          std::memset(to, 0, bytes);
        } else {
          std::memcpy(to, weight > 0 ? value : nan, bytes);
        }
      }
    });
  });
}

template <int D, typename Field, typename T = typename Field::Type>
void forward_cubic(const Grids<D>& grids, const Field& field, Padding padding,
                   const T* moving,  // (N or 1, C, *from)
                   T* warped) {      // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, n, row, [&](const Line<D>& line) {
      T* out = warped + n * grids.channels * grids.to_voxels + line.voxel;
      for_taps(grids, field, padding, line, [&](int64_t x, const CubicTaps<T>* at) {
        for (int64_t c = 0; c < grids.channels; ++c) {
          const T* image = moving + n * grids.image_stride + c * grids.from_voxels;
          T value[1];
          contract<D>(image, grids.stride, at, value);
          out[c * grids.to_voxels + x] = value[0];
        }
      });
    });
  });
}

// The image at the points of the field, whose type is also that of the image unless its voxels are
// copied (nearest).
template <int D, typename Field>
void sample(const Grids<D>& grids, const Field& field, const Sampling& sampling,
            const Tensor& moving, Tensor& warped) {
  using T = typename Field::Type;
  if (sampling.interpolation == Interpolation::cubic) {
    return forward_cubic(grids, field, sampling.padding, moving.const_data_ptr<T>(),
                         warped.mutable_data_ptr<T>());
  }
  with_rule(sampling, [&](auto rule) {
    using Rule = decltype(rule);
    if constexpr (Rule::kLinear) {
      forward_linear<Rule>(grids, field, moving.const_data_ptr<T>(), warped.mutable_data_ptr<T>());
    } else {
      const auto nan = not_a_number(moving);
      const auto run = [&](auto bytes) {
        forward_nearest<Rule, decltype(bytes)::value>(
            grids, field, nan.data(), static_cast<const char*>(moving.const_data_ptr()),
            static_cast<char*>(warped.mutable_data_ptr()));
      };
      dispatch_value<1, 2, 4, 8, 16>(static_cast<int>(nan.size()), run);  // no dtype has another
    }
  });
}

// Adds, along each axis, the upstream gradient times the derivative for the voxels of a line,
// channel after channel; of one that a mask hides what is not finite is 0.
template <typename Rule, int D, typename Field, typename T = typename Field::Type>
void add_derivatives(const Grids<D>& grids, const Field& field, const Line<D>& line,
                     const T* gradient,  // (N, C, *to)
                     const T* moving,    // (N or 1, C, *from)
                     const T* mask,      // (N, 1, *to) or null
                     T* out,             // of the line's first voxel, along the first axis
                     int64_t stride) {   // to the next axis
  const T* weights = mask ? mask + line.sample * grids.to_voxels + line.voxel : nullptr;
  for (int64_t c = 0; c < grids.channels; ++c) {
    const T* upstream =
        gradient + (line.sample * grids.channels + c) * grids.to_voxels + line.voxel;
    const T* image = moving + line.sample * grids.image_stride + c * grids.from_voxels;
    with_weights(weights, [&](const auto& weight) {
      for_corners<Rule>(grids, field, line, image,
                        [&](int64_t x, const Neighbours<T>* at, const Corners<D, T>& corners)
                            DIFFREG_INLINE_LAMBDA {
                              const auto part = [&](T derivative) DIFFREG_INLINE_LAMBDA {
                                return visible(passed_on(upstream[x], derivative), weight(x));
                              };
                              out[x] += part(corners.template derivative<0>(at));
                              out[stride + x] += part(corners.template derivative<1>(at));
                              if constexpr (D == 3) {
                                out[2 * stride + x] += part(corners.template derivative<2>(at));
                              }
                            });
    });
  }
}

template <int D, typename Field, typename T = typename Field::Type>
void add_cubic_derivatives(const Grids<D>& grids, const Field& field, Padding padding,
                           const Line<D>& line, const T* gradient, const T* moving, T* out,
                           int64_t stride) {
  const T* upstream = gradient + line.sample * grids.channels * grids.to_voxels + line.voxel;
  for_taps(grids, field, padding, line, [&](int64_t x, const CubicTaps<T>* at) {
    for (int64_t c = 0; c < grids.channels; ++c) {
      const T* image = moving + line.sample * grids.image_stride + c * grids.from_voxels;
      T found[1 + D];
      contract<D>(image, grids.stride, at, found);
      for (int k = 0; k < D; ++k) {
        out[k * stride + x] += passed_on(upstream[c * grids.to_voxels + x], found[1 + k]);
      }
    }
  });
}

// Calls run(add): add(line, out, stride) does one of the two above; cubic sampling has no mask.
template <int D, typename Field, typename Run, typename T = typename Field::Type>
void with_derivatives(const Grids<D>& grids, const Field& field, const Sampling& sampling,
                      const T* gradient, const T* moving, const T* mask, const Run& run) {
  if (sampling.interpolation == Interpolation::cubic) {
    return run([&](const Line<D>& line, T* out, int64_t stride) {
      add_cubic_derivatives(grids, field, sampling.padding, line, gradient, moving, out, stride);
    });
  }
  with_rule(sampling, [&](auto rule) {
    using Rule = decltype(rule);
    // Of the nearest voxel it is 0, or NaN, under any padding.
    using Derived = std::conditional_t<Rule::kLinear, Rule, warp::Rule<false, Padding::border>>;
    run([&](const Line<D>& line, T* out, int64_t stride) {
      add_derivatives<Derived>(grids, field, line, gradient, moving, mask, out, stride);
    });
  });
}

}  // namespace diffreg::warp
