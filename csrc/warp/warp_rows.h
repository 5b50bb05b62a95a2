// CPU only: rows of the fixed grid, and the neighbours on the moving grid of the points where their
// voxels land.
#pragma once

#include <algorithm>

#include "../common/ring.h"
#include "arguments.h"

namespace diffreg::warp {

inline void check(const Tensor& moving, const Tensor& displacement) {
  check_image("moving", moving);
  check_displacement(displacement);
  check_axes(moving);
  check_axes(displacement);
  check_pair(moving, displacement);
}

// Sizes and strides of contiguous tensors; `from` is the moving grid, `to` the fixed grid.
struct Grids {
  int64_t samples, channels;
  int64_t from[D], to[D];
  int64_t stride[D];  // of the moving grid
  int64_t from_voxels, to_voxels, row_voxels;

  Grids(const Tensor& moving, const Tensor& displacement)
      : samples(moving.size(0)), channels(moving.size(1)), from_voxels(1), to_voxels(1) {
    for (int k = D - 1; k >= 0; --k) {
      from[k] = moving.size(2 + k);
      to[k] = displacement.size(2 + k);
      stride[k] = from_voxels;
      from_voxels *= from[k];
      if (k == 0) row_voxels = to_voxels;
      to_voxels *= to[k];
    }
  }
};

// Interpolation and padding as a type, so that a loop over voxels has no choice left in it.
template <bool is_linear, Padding padding>
struct Rule {
  static constexpr bool kLinear = is_linear;

  template <typename T>
  static Neighbours<T> locate(T coordinate, T bad, int32_t size) {
    if constexpr (is_linear) {
      return linear(coordinate, bad, size, padding);
    } else {
      return nearest(coordinate, bad, size, padding);
    }
  }
};

// Calls run(Rule<...>) for the one that `sampling` names.
template <typename Run>
void with_rule(const Sampling& sampling, const Run& run) {
  dispatch_padding(sampling.padding, [&](auto padding) {
    if (sampling.linear) return run(Rule<true, decltype(padding)::value>{});
    run(Rule<false, decltype(padding)::value>{});
  });
}

// A line of the fixed grid along its last axis, and the displacement of its voxels.
template <typename T>
struct Line {
  int64_t index[D];    // of its first voxel
  int64_t voxel;       // of its first voxel, in raster order
  const T* component;  // of that voxel; the others are grids.to_voxels apart
};

// Calls run(line) for the lines of one row (axis 0) of the fixed grid, in raster order.
template <typename T, typename Run>
void for_lines(const Grids& grids, const T* displacement,  // (D, *to) of one sample
               int64_t row, const Run& run) {
  const int64_t first = row * grids.row_voxels, end = first + grids.row_voxels;
  Line<T> line{{row}, first, displacement + first};
  for (; line.voxel < end; line.voxel += grids.to[D - 1], line.component += grids.to[D - 1]) {
    run(line);
    for (int k = D - 2; k > 0 && ++line.index[k] == grids.to[k]; --k) line.index[k] = 0;
  }
}

// Calls run(x, at) for the voxels begin <= x < end of a line, with the neighbours on the moving
// grid of the point where each lands. No call may depend on another: the loop is vectorised.
template <typename Rule, typename T, typename Run>
void for_voxels(const Grids& grids, const Line<T>& line, int64_t begin, int64_t end,
                const Run& run) {
  T start[D];
  int32_t size[D];
  for (int k = 0; k < D; ++k) {
    start[k] = static_cast<T>(static_cast<int32_t>(line.index[k]));
    size[k] = static_cast<int32_t>(grids.from[k]);
  }
  const int32_t last = static_cast<int32_t>(end);
#pragma GCC ivdep
  for (int32_t x = static_cast<int32_t>(begin); x < last; ++x) {
    T shift[D], bad = 0;
    for (int k = 0; k < D; ++k) {
      shift[k] = line.component[k * grids.to_voxels + x];
      bad += poison(shift[k]);
    }
    Neighbours<T> at[D];
    for (int k = 0; k < D; ++k) {
      const T from = k == D - 1 ? static_cast<T>(x) : start[k];
      at[k] = Rule::locate(from + shift[k], bad, size[k]);
    }
    run(x, at);
  }
}

// A plane of the moving image whose voxels are counted in 32 or 64 bits: vector gathers by the
// first are twice as fast.
template <typename T, typename Index>
struct Plane {
  const T* data;
  Index at = 0;

  Plane operator+(Index step) const { return {data, at + step}; }
  T operator*() const { return data[at]; }
};

// Calls run(index) for an int32_t where that counts the voxels of the moving grid, else int64_t.
template <typename Run>
void with_index(const Grids& grids, const Run& run) {
  if (grids.from_voxels < INT32_MAX) return run(int32_t{});
  run(int64_t{});
}

// Rows of one channel of the warped image, computed when they are first asked for, in their order;
// the last `depth` of them are kept. Where there is a mask, what is not finite under a weight of 0,
// of values and derivatives, counts as 0.
template <typename T>
class WarpedRows {
 public:
  WarpedRows(const Grids& grids, Padding padding,
             const T* moving,        // (*from)
             const T* displacement,  // (D, *to)
             const T* mask,          // (*to) or null
             bool slopes, int64_t first, int64_t depth)
      : grids_(grids),
        moving_(moving),
        displacement_(displacement),
        mask_(mask),
        next_(first),
        values_(depth, grids.row_voxels),
        image_(mask ? depth : 0, grids.row_voxels),
        slopes_{{slopes ? depth : 0, grids.row_voxels}, {slopes ? depth : 0, grids.row_voxels}} {
    with_rule({true, padding}, [&](auto rule) {
      using Rule = decltype(rule);
      if constexpr (Rule::kLinear) {
        with_index(grids, [&](auto index) {
          using Index = decltype(index);
          fill_ =
              slopes ? &WarpedRows::fill<Rule, Index, true> : &WarpedRows::fill<Rule, Index, false>;
        });
      }
    });
  }

  const T* row(int64_t y) {
    for (; next_ <= y; ++next_) {
      (this->*fill_)(next_);
      if (mask_) hide(next_);
    }
    return values_.row(y);
  }
  // The same row as it was warped.
  const T* image(int64_t y) {
    const T* counts = row(y);
    return mask_ ? image_.row(y) : counts;
  }
  // Derivatives by component k of the displacement, of a row that was asked for.
  const T* slope(int k, int64_t y) const { return slopes_[k].row(y); }

 private:
  void hide(int64_t y) {
    const int64_t W = grids_.row_voxels;
    std::copy_n(values_.row(y), W, image_.row(y));
    const auto hide_row = [W, weight = mask_ + y * W](T* row) {
      for (int64_t x = 0; x < W; ++x) row[x] = visible(row[x], weight[x]);
    };
    hide_row(values_.row(y));
    for (Ring<T>& slopes : slopes_) {
      if (slopes.rows() > 0) hide_row(slopes.row(y));
    }
  }

  template <typename Rule, typename Index, bool with_slopes>
  void fill(int64_t y) {
    static_assert(D == 2);
    const Index stride[D] = {static_cast<Index>(grids_.stride[0]), 1};
    const Plane<T, Index> image{moving_};
    const int64_t voxel = y * grids_.row_voxels;
    const Line<T> line{{y}, voxel, displacement_ + voxel};
    T* out = values_.row(y);
    T* slope0 = with_slopes ? slopes_[0].row(y) : nullptr;
    T* slope1 = with_slopes ? slopes_[1].row(y) : nullptr;
    // First the voxels, some at a time, then the arithmetic: its choices would make the reads
    // conditional, and neither would be vectorised.
    T voxels[1 << D][kPiece];
    for (int64_t begin = 0; begin < grids_.to[D - 1]; begin += kPiece) {
      const int64_t end = std::min(begin + kPiece, grids_.to[D - 1]);
      for_voxels<Rule>(grids_, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
        const Corners<D, T> corners(image, stride, at);
        for (int k = 0; k < 1 << D; ++k) voxels[k][x - begin] = corners.voxel[k];
      });
      for_voxels<Rule>(grids_, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
        const Corners<D, T> corners([&](int k) { return voxels[k][x - begin]; });
        out[x] = corners.value(at);
      });
      if constexpr (!with_slopes) continue;
      for_voxels<Rule>(grids_, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
        const Corners<D, T> corners([&](int k) { return voxels[k][x - begin]; });
        slope0[x] = corners.template derivative<0>(at);
        slope1[x] = corners.template derivative<1>(at);
      });
    }
  }

  static constexpr int64_t kPiece = 256;
  Grids grids_;
  const T* moving_;
  const T* displacement_;
  const T* mask_;
  int64_t next_;
  Ring<T> values_, image_, slopes_[D];
  void (WarpedRows::*fill_)(int64_t);
};

}  // namespace diffreg::warp
