// CPU only: rows of the fixed grid, and the neighbours on the moving grid of the points where their
// voxels land.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

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
template <int D>
struct Grids {
  int64_t samples, channels;
  int64_t from[D], to[D];
  int64_t stride[D];  // of the moving grid
  int64_t from_voxels, to_voxels, row_voxels;
  int64_t image_stride;  // from a sample's images to the next one's; 0 where all read the same

  // `size` is that of the fixed grid.
  Grids(int64_t samples, const Tensor& moving, const int64_t* size)
      : samples(samples), channels(moving.size(1)), from_voxels(1), to_voxels(1) {
    for (int k = D - 1; k >= 0; --k) {
      from[k] = moving.size(2 + k);
      to[k] = size[k];
      stride[k] = from_voxels;
      from_voxels *= from[k];
      if (k == 0) row_voxels = to_voxels;
      to_voxels *= to[k];
    }
    image_stride = moving.size(0) < samples ? 0 : channels * from_voxels;
  }
};

// Interpolation and padding as a type, so that a loop over voxels has no choice left in it.
template <bool is_linear, Padding padding>
struct Rule {
  static constexpr bool kLinear = is_linear;
  static constexpr Padding kPadding = padding;

  template <typename T>
  static Neighbours<T> locate(T coordinate, T bad, int32_t size) {
    if constexpr (is_linear) {
      return linear(coordinate, bad, size, padding);
    } else {
      return nearest(coordinate, bad, size, padding);
    }
  }
};

// Calls run(Rule<...>) for the one that `sampling`, linear or nearest, names.
template <typename Run>
void with_rule(const Sampling& sampling, const Run& run) {
  dispatch_value<Padding::border, Padding::zeros, Padding::reflection>(
      sampling.padding, [&](auto padding) {
        constexpr Padding kPadding = decltype(padding)::value;
        if (sampling.interpolation == Interpolation::linear) return run(Rule<true, kPadding>{});
        run(Rule<false, kPadding>{});
      });
}

// A line of the fixed grid along its last axis.
template <int D>
struct Line {
  int64_t sample;
  int64_t index[D];  // of its first voxel
  int64_t voxel;     // of its first voxel, in raster order
};

// Calls run(line) for the lines of one row (axis 0) of the fixed grid, in raster order.
template <int D, typename Run>
void for_lines(const Grids<D>& grids, int64_t sample, int64_t row, const Run& run) {
  const int64_t first = row * grids.row_voxels, end = first + grids.row_voxels;
  Line<D> line{sample, {row}, first};
  for (; line.voxel < end; line.voxel += grids.to[D - 1]) {
    run(line);
    for (int k = D - 2; k > 0 && ++line.index[k] == grids.to[k]; --k) line.index[k] = 0;
  }
}

// Voxels of a line that are located at once.
constexpr int64_t kPiece = 128;

// Calls run(begin, end) for the pieces of a line.
template <int D, typename Run>
void for_pieces(const Grids<D>& grids, const Run& run) {
  const int64_t voxels = grids.to[D - 1];
  for (int64_t begin = 0; begin < voxels; begin += kPiece) {
    run(begin, std::min(begin + kPiece, voxels));
  }
}

// Where the voxels of the fixed grid land: p + u(p). What else stands for it is `field` below.
template <int D, typename T>
struct Displaced {
  using Type = T;
  const T* displacement;  // (N, D, *to)

  // Those of the voxels of a line.
  struct Points {
    T start[D];
    const T* component;  // of its first voxel; the others are `stride` apart
    int64_t stride;

    // Writes the point where voxel x lands, and gives 0, or NaN where that is not finite.
    DIFFREG_INLINE T operator()(int32_t x, T* point) const {
      T bad = 0;
      for (int k = 0; k < D; ++k) {
        const T shift = component[k * stride + x];
        bad += poison(shift);
        point[k] = (k == D - 1 ? static_cast<T>(x) : start[k]) + shift;
      }
      return bad;
    }
  };
  // Of those voxels, x in [begin, begin + kPiece) are asked for.
  Points points(const Grids<D>& grids, const Line<D>& line, int64_t /* begin */) const {
    Points points{
        {}, displacement + line.sample * D * grids.to_voxels + line.voxel, grids.to_voxels};
    for (int k = 0; k < D; ++k) {
      points.start[k] = static_cast<T>(static_cast<int32_t>(line.index[k]));
    }
    return points;
  }
};

// Calls run(x, at) for the voxels begin <= x < end of a piece of a line, with the neighbours on the
// moving grid of the point where each lands. No call may depend on another: the loop is vectorised.
template <typename Rule, int D, typename Field, typename Run>
void for_voxels(const Grids<D>& grids, const Field& field, const Line<D>& line, int64_t begin,
                int64_t end, const Run& run) {
  using T = typename Field::Type;
  const auto points = field.points(grids, line, begin);
  int32_t size[D];
  for (int k = 0; k < D; ++k) size[k] = static_cast<int32_t>(grids.from[k]);
  const int32_t last = static_cast<int32_t>(end);
#pragma GCC ivdep
  for (int32_t x = static_cast<int32_t>(begin); x < last; ++x) {  // hot: voxels
    T point[D];
    const T bad = points(x, point);
    Neighbours<T> at[D];
    for (int k = 0; k < D; ++k) at[k] = Rule::locate(point[k], bad, size[k]);
    run(x, at);
  }
}

// An image of the moving grid whose voxels are counted in 32 or 64 bits: vector gathers by the
// first are twice as fast.
template <typename T, typename Index>
struct Voxels {
  const T* data;
  Index at = 0;

  Voxels operator+(Index step) const { return {data, at + step}; }
  T operator*() const { return data[at]; }
};

// Whether voxels are read as pairs: on AMD's processors a gather costs more than twice that, on
// Intel's two thirds. DIFFREG_WARP_READS=pairs or =gathers asks for one. The bits are the same.
inline bool reads_pairs() {
  static const bool pairs = [] {
    const char* asked = std::getenv("DIFFREG_WARP_READS");
    return asked ? std::strcmp(asked, "pairs") == 0 : bool(__builtin_cpu_is("amd"));
  }();
  return pairs;
}

// The voxels around the points of some voxels of a line, read as pairs of neighbours along the last
// axis by scalar loads of both at once.
template <int D, typename T>
class Pairs {
 public:
  // The last axis has at least two voxels, and an int32_t counts those of the moving grid.
  explicit Pairs(const Grids<D>& grids)
      : grids_(grids), last_(static_cast<int32_t>(grids.from[D - 1]) - 2) {}

  template <typename Rule, typename Field>
  void read(const Field& field, const Line<D>& line, int64_t begin, int64_t end, const T* image) {
    int32_t stride[D];
    for (int k = 0; k < D; ++k) stride[k] = static_cast<int32_t>(grids_.stride[k]);
    for_voxels<Rule>(grids_, field, line, begin, end, [&](int64_t x, const Neighbours<T>* at) {
      const int32_t base = at[D - 1].low < last_ ? at[D - 1].low : last_;
      DIFFREG_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        int32_t offset = base;
        DIFFREG_UNROLL
        for (int k = 0; k < D - 1; ++k) {
          offset += (j >> (D - 2 - k) & 1 ? at[k].high : at[k].low) * stride[k];
        }
        offset_[j][x - begin] = offset;
      }
    });
    for (int64_t i = 0; i < end - begin; ++i) {
      DIFFREG_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        std::memcpy(&pair_[j][2 * i], image + offset_[j][i], 2 * sizeof(T));
      }
    }
  }

  // The corners of the i-th voxel, whose neighbours along the last axis are `along`.
  template <typename Rule>
  DIFFREG_INLINE Corners<D, T> corners(int64_t i, const Neighbours<T>& along) const {
    // Beyond the last pair the low neighbour is its second one; before the first, where zeros are
    // read, the high neighbour is its first one.
    const T low_is_first = static_cast<T>(along.low <= last_);
    const T high_is_second = static_cast<T>(along.high > along.low || along.low > last_);
    return Corners<D, T>([&](int k) {
      const T first = pair_[k / 2][2 * i], second = pair_[k / 2][2 * i + 1];
      if (k % 2 == 0) return unless_zero(low_is_first, first, second);
      if constexpr (Rule::kPadding != Padding::zeros) return second;
      return unless_zero(high_is_second, second, first);
    });
  }

 private:
  static constexpr int kPairs = 1 << (D - 1);
  const Grids<D>& grids_;
  int32_t last_;
  int32_t offset_[kPairs][kPiece];
  T pair_[kPairs][2 * kPiece];
};

// The voxels around a point, read by vector gathers: for the value as they are needed, for the
// derivatives, which need them more than once, all before.
template <int D, typename T, typename Index>
struct Gathered {
  Voxels<T, Index> voxels;
  const Index* stride;
  const Neighbours<T>* at;

  DIFFREG_INLINE T value(const Neighbours<T>* at) const {
    return warp::value<D>(voxels, stride, at);
  }
  DIFFREG_INLINE operator Corners<D, T>() const { return Corners<D, T>(voxels, stride, at); }
};

// Calls run(x, at, corners) for the voxels of a piece of a line, with the voxels of `image` around
// each, which an Index counts.
template <typename Rule, typename Index, int D, typename Field, typename T, typename Run>
void gather_corners(const Grids<D>& grids, const Field& field, const Line<D>& line, int64_t begin,
                    int64_t end, const T* image,  // (*from)
                    const Run& run) {
  Index stride[D];
  for (int k = 0; k < D; ++k) stride[k] = static_cast<Index>(grids.stride[k]);
  const Voxels<T, Index> voxels{image};
  for_voxels<Rule>(grids, field, line, begin, end,
                   [&](int64_t x, const Neighbours<T>* at) DIFFREG_INLINE_LAMBDA {
                     run(x, at, Gathered<D, T, Index>{voxels, stride, at});
                   });
}

// The same by pairs: first the voxels are read, then comes the arithmetic.
template <typename Rule, int D, typename Field, typename T, typename Run>
void pair_corners(const Grids<D>& grids, const Field& field, const Line<D>& line, int64_t begin,
                  int64_t end, const T* image,  // (*from)
                  const Run& run) {
  Pairs<D, T> pairs(grids);
  pairs.template read<Rule>(field, line, begin, end, image);
  for_voxels<Rule>(grids, field, line, begin, end,
                   [&](int64_t x, const Neighbours<T>* at) DIFFREG_INLINE_LAMBDA {
                     run(x, at, pairs.template corners<Rule>(x - begin, at[D - 1]));
                   });
}

// The same for a whole line, by the form that this processor reads faster.
template <typename Rule, int D, typename Field, typename T, typename Run>
void for_corners(const Grids<D>& grids, const Field& field, const Line<D>& line,
                 const T* image,  // (*from)
                 const Run& run) {
  const bool many = grids.from_voxels >= INT32_MAX;
  const bool pairs = !many && grids.from[D - 1] > 1 && reads_pairs();
  for_pieces(grids, [&](int64_t begin, int64_t end) {
    if (many) return gather_corners<Rule, int64_t>(grids, field, line, begin, end, image, run);
    if (pairs) return pair_corners<Rule>(grids, field, line, begin, end, image, run);
    gather_corners<Rule, int32_t>(grids, field, line, begin, end, image, run);
  });
}

}  // namespace diffreg::warp
