// Schema and CPU driver of diffreg::warp and diffreg::warp_backward.
#include "warp_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "../common/parallel.h"
#include "cubic.h"
#include "not_a_number.h"

namespace diffreg::warp {
namespace {

// Neighbours of some voxels of a line, as arrays that a vectorised loop can fill.
template <int D, typename T>
struct Lanes {
  static constexpr int64_t kCount = 128;
  int32_t low[D][kCount], high[D][kCount];
  T low_weight[D][kCount], high_weight[D][kCount];

  template <typename Rule>
  void fill(const Grids<D>& grids, const Line<D, T>& line, int64_t begin, int64_t end) {
    for_voxels<Rule>(grids, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
      for (int k = 0; k < D; ++k) {
        low[k][x - begin] = at[k].low;
        high[k][x - begin] = at[k].high;
        low_weight[k][x - begin] = at[k].low_weight;
        high_weight[k][x - begin] = at[k].high_weight;
      }
    });
  }
};

// Calls run(voxel, lanes, count) for the voxels of one row of the fixed grid, some at a time in
// raster order.
template <typename Rule, int D, typename T, typename Run>
void for_lanes_of_row(const Grids<D>& grids, const T* displacement,  // (D, *to) of one sample
                      int64_t row, const Run& run) {
  Lanes<D, T> lanes;
  for_lines(grids, displacement, row, [&](const Line<D, T>& line) {
    for (int64_t begin = 0; begin < grids.to[D - 1]; begin += lanes.kCount) {
      const int64_t end = std::min(begin + lanes.kCount, grids.to[D - 1]);
      lanes.template fill<Rule>(grids, line, begin, end);
      run(line.voxel + begin, lanes, end - begin);
    }
  });
}

// Calls run(voxel, at) for the voxels of one row of the fixed grid, one after the other in raster
// order; without slopes.
template <typename Rule, int D, typename T, typename Run>
void for_row(const Grids<D>& grids, const T* displacement,  // (D, *to) of one sample
             int64_t row, const Run& run) {
  for_lanes_of_row<Rule>(grids, displacement, row,
                         [&](int64_t voxel, const Lanes<D, T>& lanes, int64_t count) {
                           for (int64_t i = 0; i < count; ++i) {
                             Neighbours<T> at[D];
                             for (int k = 0; k < D; ++k) {
                               at[k] = {lanes.low[k][i],
                                        lanes.high[k][i],
                                        lanes.low_weight[k][i],
                                        lanes.high_weight[k][i],
                                        T(0),
                                        T(0)};
                             }
                             run(voxel + i, at);
                           }
                         });
}

// Calls run(sample, row) for every row (axis 0) of the fixed grid, in parallel.
template <int D, typename Run>
void for_each_row(const Grids<D>& grids, const Run& run) {
  for_each_strip(
      grids.samples, grids.to[0], grids.row_voxels,
      [&](int64_t n, int64_t, int64_t first, int64_t end) {
        for (int64_t row = first; row < end; ++row) run(n, row);
      },
      D == 2 ? kStripRows : 1);
}

template <typename Rule, int D, typename T>
void forward_linear(const Grids<D>& grids,
                    const T* moving,        // (N, C, *from)
                    const T* displacement,  // (N, D, *to)
                    T* warped) {            // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<D, T>& line) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        T* out = warped + c * grids.to_voxels + line.voxel;
        for_corners<Rule>(grids, line, moving + c * grids.from_voxels,
                          [&](int64_t x, const Neighbours<T>* at, const auto& corners)
                              DIFFREG_INLINE_LAMBDA { out[x] = corners.value(at); });
      }
    });
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename Rule, int D, typename T>
void forward_nearest(const Grids<D>& grids, int64_t bytes,
                     const char* nan,        // (bytes)
                     const char* moving,     // (N, C, *from, bytes)
                     const T* displacement,  // (N, D, *to)
                     char* warped) {         // (N, C, *to, bytes)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    const char* image = moving + n * grids.channels * grids.from_voxels * bytes;
    char* out = warped + n * grids.channels * grids.to_voxels * bytes;
    for_row<Rule>(grids, displacement + n * D * grids.to_voxels, row,
                  [&](int64_t voxel, const Neighbours<T>* at) {
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

template <int D, typename T>
void forward_cubic(const Grids<D>& grids, Padding padding,
                   const T* moving,        // (N, C, *from)
                   const T* displacement,  // (N, D, *to)
                   T* warped) {            // (N, C, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row,
                  [&](int64_t voxel, const CubicTaps<T>* at) {
                    for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
                      warped[c * grids.to_voxels + voxel] =
                          contract<D>(moving + c * grids.from_voxels, grids.stride, at, -1);
                    }
                  });
  });
}

// Adds the upstream gradient times the derivative along each axis, channel after channel; where it
// does not `accumulate`, to zeros, which are written line by line: they do not leave the cache.
template <typename Rule, int D, typename T>
void add_to_displacement(const Grids<D>& grids, bool accumulate,
                         const T* gradient,       // (N, C, *to)
                         const T* moving,         // (N, C, *from)
                         const T* displacement,   // (N, D, *to)
                         T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    for_lines(grids, displacement + n * D * grids.to_voxels, row, [&](const Line<D, T>& line) {
      T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
      for (int k = 0; k < D && !accumulate; ++k) {
        std::fill_n(out + k * grids.to_voxels, grids.to[D - 1], T(0));
      }
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        const T* upstream = gradient + c * grids.to_voxels + line.voxel;
        for_corners<Rule>(grids, line, moving + c * grids.from_voxels,
                          [&](int64_t x, const Neighbours<T>* at,
                              const Corners<D, T>& corners) DIFFREG_INLINE_LAMBDA {
                            out[x] += passed_on(upstream[x], corners.template derivative<0>(at));
                            out[grids.to_voxels + x] +=
                                passed_on(upstream[x], corners.template derivative<1>(at));
                            if constexpr (D == 3) {
                              out[2 * grids.to_voxels + x] +=
                                  passed_on(upstream[x], corners.template derivative<2>(at));
                            }
                          });
      }
    });
  });
}

template <int D, typename T>
void add_to_displacement_cubic(const Grids<D>& grids, Padding padding, bool accumulate,
                               const T* gradient,       // (N, C, *to)
                               const T* moving,         // (N, C, *from)
                               const T* displacement,   // (N, D, *to)
                               T* grad_displacement) {  // (N, D, *to)
  for_each_row(grids, [&](int64_t n, int64_t row) {
    T* out = grad_displacement + n * D * grids.to_voxels;
    for (int k = 0; k < D && !accumulate; ++k) {
      std::fill_n(out + k * grids.to_voxels + row * grids.row_voxels, grids.row_voxels, T(0));
    }
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row,
                  [&](int64_t voxel, const CubicTaps<T>* at) {
                    for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
                      const T upstream = gradient[c * grids.to_voxels + voxel];
                      const T* image = moving + c * grids.from_voxels;
                      for (int k = 0; k < D; ++k) {
                        out[k * grids.to_voxels + voxel] +=
                            passed_on(upstream, contract<D>(image, grids.stride, at, k));
                      }
                    }
                  });
  });
}

// The rows of the moving grid that one row of the fixed grid touches.
struct RowRange {
  int64_t lowest, highest;
};

// Every strip of the moving grid collects its own contributions in the raster order of the fixed
// grid: no atomics, and the same bits whatever the number of threads.
// reach(sample, row) is the range that a row of the fixed grid touches; add(sample, row, first,
// end) adds what it gives to the rows [first, end) of the moving grid.
template <int D, typename Reach, typename Add>
void add_to_moving(const Grids<D>& grids, const Reach& reach, const Add& add) {
  std::vector<RowRange> ranges(grids.samples * grids.to[0]);
  for_each_row(grids,
               [&](int64_t n, int64_t row) { ranges[n * grids.to[0] + row] = reach(n, row); });
  for_each_strip(grids.samples, grids.from[0], grids.stride[0],
                 [&](int64_t n, int64_t, int64_t first, int64_t end) {
                   for (int64_t row = 0; row < grids.to[0]; ++row) {
                     const RowRange range = ranges[n * grids.to[0] + row];
                     if (range.highest >= first && range.lowest < end) add(n, row, first, end);
                   }
                 });
}

// What some voxels of a line give to the voxels around each, the first axis slowest; of the nearest
// voxel alone there is one.
template <typename Rule, int D, typename T>
struct Parts {
  static constexpr int kCorners = Rule::kLinear ? 1 << D : 1;
  T part[kCorners][Lanes<D, T>::kCount];

  static constexpr bool is_high(int corner, int axis) { return corner >> (D - 1 - axis) & 1; }

  // 0 where the upstream gradient or a weight is 0.
  void fill(const Lanes<D, T>& lanes, const T* upstream, int64_t count) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {  // hot: parts
      DIFFREG_UNROLL
      for (int corner = 0; corner < kCorners; ++corner) {
        T value = upstream[i];
        DIFFREG_UNROLL
        for (int k = 0; k < D; ++k) {
          const T weight = is_high(corner, k) ? lanes.high_weight[k][i] : lanes.low_weight[k][i];
          value = counted(passed_on(value, weight), weight);
        }
        part[corner][i] = value;
      }
    }
  }

  // Adds those of voxel i to the rows [first, end) of axis 0. A 0 changes nothing.
  DIFFREG_INLINE void add(const Lanes<D, T>& lanes, const int64_t* stride, int64_t i, int64_t first,
                          int64_t end, T* image) const {
    constexpr int kHalf = Rule::kLinear ? kCorners / 2 : 1;
    DIFFREG_UNROLL
    for (int half = 0; half < kCorners / kHalf; ++half) {
      const int32_t row = half ? lanes.high[0][i] : lanes.low[0][i];
      if (row < first || row >= end) continue;
      DIFFREG_UNROLL
      for (int corner = half * kHalf; corner < (half + 1) * kHalf; ++corner) {
        int64_t voxel = row * stride[0];
        DIFFREG_UNROLL
        for (int k = 1; k < D; ++k) {
          voxel += (is_high(corner, k) ? lanes.high[k][i] : lanes.low[k][i]) * stride[k];
        }
        image[voxel] += part[corner][i];
      }
    }
  }
};

template <typename Rule, int D, typename T>
void add_to_moving_linear(const Grids<D>& grids,
                          const T* gradient,      // (N, C, *to)
                          const T* displacement,  // (N, D, *to)
                          T* grad_moving) {       // (N, C, *from)
  const auto for_row_of = [&](int64_t n, int64_t row, const auto& run) {
    for_lanes_of_row<Rule>(grids, displacement + n * D * grids.to_voxels, row, run);
  };
  const auto reach = [&](int64_t n, int64_t row) {
    int32_t lowest = INT32_MAX, highest = -1;
    for_row_of(n, row, [&](int64_t, const Lanes<D, T>& lanes, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        lowest = std::min(lowest, lanes.low[0][i]);
        highest = std::max(highest, lanes.high[0][i]);
      }
    });
    return RowRange{lowest, highest};
  };
  add_to_moving(grids, reach, [&](int64_t n, int64_t row, int64_t first, int64_t end) {
    Parts<Rule, D, T> parts;
    for_row_of(n, row, [&](int64_t voxel, const Lanes<D, T>& lanes, int64_t count) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        parts.fill(lanes, gradient + c * grids.to_voxels + voxel, count);
        T* image = grad_moving + c * grids.from_voxels;
        for (int64_t i = 0; i < count; ++i) parts.add(lanes, grids.stride, i, first, end, image);
      }
    });
  });
}

template <int D, typename T>
void add_to_moving_cubic(const Grids<D>& grids, Padding padding, const T* gradient,
                         const T* displacement, T* grad_moving) {
  const auto for_row_of = [&](int64_t n, int64_t row, const auto& run) {
    for_cubic_row(grids, displacement + n * D * grids.to_voxels, padding, row, run);
  };
  const auto reach = [&](int64_t n, int64_t row) {
    RowRange range{grids.from[0], -1};
    for_row_of(n, row, [&](int64_t, const CubicTaps<T>* at) {
      const auto [low, high] = std::minmax_element(at[0].index, at[0].index + 4);
      range = {std::min<int64_t>(range.lowest, *low), std::max<int64_t>(range.highest, *high)};
    });
    return range;
  };
  add_to_moving(grids, reach, [&](int64_t n, int64_t row, int64_t first, int64_t end) {
    for_row_of(n, row, [&](int64_t voxel, const CubicTaps<T>* at) {
      for (int64_t c = n * grids.channels; c < (n + 1) * grids.channels; ++c) {
        const T value = gradient[c * grids.to_voxels + voxel];
        if (value == 0) continue;
        splat<D>(grad_moving + c * grids.from_voxels, grids.stride, at, value, first, end);
      }
    });
  });
}

}  // namespace

Tensor warped_image(const Tensor& moving, const Tensor& displacement, const Sampling& sampling) {
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  Tensor warped = torch::stable::new_empty(moving, shape);
  if (warped.numel() == 0) return warped;
  dispatch_dimensions(displacement, [&](auto dimensions) {
    const Grids<decltype(dimensions)::value> grids(moving, displacement);
    dispatch_floating("displacement", displacement, [&](auto zero) {
      using T = decltype(zero);
      const T* u = displacement.const_data_ptr<T>();
      if (sampling.interpolation == Interpolation::cubic) {
        return forward_cubic(grids, sampling.padding, moving.const_data_ptr<T>(), u,
                             warped.mutable_data_ptr<T>());
      }
      with_rule(sampling, [&](auto rule) {
        using Rule = decltype(rule);
        if constexpr (Rule::kLinear) {
          forward_linear<Rule>(grids, moving.const_data_ptr<T>(), u, warped.mutable_data_ptr<T>());
        } else {
          forward_nearest<Rule>(grids, static_cast<int64_t>(moving.element_size()),
                                not_a_number(moving).data(),
                                static_cast<const char*>(moving.const_data_ptr()), u,
                                static_cast<char*>(warped.mutable_data_ptr()));
        }
      });
    });
  });
  return warped;
}

void add_gradients(const Tensor& gradient, const Tensor& moving, const Tensor& displacement,
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement,
                   bool accumulate) {
  if (gradient.numel() == 0) return;
  dispatch_dimensions(displacement, [&](auto dimensions) {
    const Grids<decltype(dimensions)::value> grids(moving, displacement);
    dispatch_floating("moving", moving, [&](auto zero) {
      using T = decltype(zero);
      const T* g = gradient.const_data_ptr<T>();
      const T *u = displacement.const_data_ptr<T>(), *image = moving.const_data_ptr<T>();
      T* to_image = to_moving ? to_moving->mutable_data_ptr<T>() : nullptr;
      T* to_field = to_displacement ? to_displacement->mutable_data_ptr<T>() : nullptr;
      if (sampling.interpolation == Interpolation::cubic) {
        if (to_image) add_to_moving_cubic(grids, sampling.padding, g, u, to_image);
        if (to_field)
          add_to_displacement_cubic(grids, sampling.padding, accumulate, g, image, u, to_field);
        return;
      }
      with_rule(sampling, [&](auto rule) {
        using Rule = decltype(rule);
        if (to_image) add_to_moving_linear<Rule>(grids, g, u, to_image);
        if (!to_field) return;
        // Of the nearest voxel it is 0, or NaN, under any padding.
        using Derived = std::conditional_t<Rule::kLinear, Rule, warp::Rule<false, Padding::border>>;
        add_to_displacement<Derived>(grids, accumulate, g, image, u, to_field);
      });
    });
  });
}

namespace {

Tensor forward(const Tensor& moving, const Tensor& displacement, std::string interpolation,
               std::string padding) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  if (sampling.interpolation != Interpolation::nearest) {
    check_dtype("displacement", displacement, moving.scalar_type());
  }
  return warped_image(torch::stable::contiguous(moving), torch::stable::contiguous(displacement),
                      sampling);
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& displacement, std::string interpolation,
                                    std::string padding, bool need_moving, bool need_displacement,
                                    bool /* deterministic, as always on the CPU */) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  check_dtype("displacement", displacement, moving.scalar_type());
  check_dtype("gradient", gradient, moving.scalar_type());
  auto shape = sizes_of(displacement);
  shape[1] = moving.size(1);
  check_shape("gradient", gradient, shape);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  // A gradient that nobody asked for is an empty tensor.
  const auto output = [](const Tensor& like, bool need, bool overwritten) {
    if (!need) return torch::stable::new_empty(like, {0});
    return overwritten ? torch::stable::new_empty(like, like.sizes())
                       : torch::stable::new_zeros(like, like.sizes());
  };
  Tensor grad_moving = output(image, need_moving, false);
  Tensor grad_displacement = output(field, need_displacement, upstream.numel() > 0);
  add_gradients(upstream, image, field, sampling, need_moving ? &grad_moving : nullptr,
                need_displacement ? &grad_displacement : nullptr, false);
  return {grad_moving, grad_displacement};
}

}  // namespace
}  // namespace diffreg::warp

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("warp(Tensor moving, Tensor displacement, str interpolation, str padding) -> Tensor");
  library.def(
      "warp_backward(Tensor gradient, Tensor moving, Tensor displacement, str interpolation, "
      "str padding, bool need_moving, bool need_displacement, bool deterministic=False) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("warp", TORCH_BOX(&diffreg::warp::forward));
  library.impl("warp_backward", TORCH_BOX(&diffreg::warp::backward));
}
