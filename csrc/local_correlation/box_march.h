// CUDA only: sums of K terms a voxel over a box window cut at the border, in double. A warp marches
// down the rows of a plane, each lane with sums over the window's planes and rows for four columns:
// a row that enters is added, the one that leaves subtracted. Along the row, between lanes, the
// sums are added up by shuffles.
#pragma once

#include <algorithm>

#include "../common/quad.h"
#include "../common/shuffle.h"
#include "local_correlation_cuda.h"

namespace diffreg::local_correlation {

// Terms of four voxels side by side, or sums of them.
template <int K>
struct Terms {
  double of[K][kQuad] = {};

  DIFFREG_DEVICE void add(const Terms& other, double sign) {
    for (int k = 0; k < K; ++k) {
      for (int j = 0; j < kQuad; ++j) of[k][j] += sign * other.of[k][j];
    }
  }
};

// The rows, in each plane of a window, that enter and leave it as it moves down by one.
struct Rows {
  int64_t enter, leave;  // first voxels, in the first plane
  bool enters, leaves;   // whether there are such rows
  int64_t plane;         // voxels from a plane to the next
  int32_t planes;

  // Calls run(row that enters, row that leaves) for each plane.
  template <int D, typename Run>
  DIFFREG_DEVICE void for_planes(const Run& run) const {
    if constexpr (D == 2) {
      run(enter, leave);
    } else {
      int64_t entering = kept(enter), leaving = kept(leave);
#pragma unroll 1
      for (int32_t z = 0; z < planes; ++z) {
        run(entering, leaving);
        entering = kept(entering + plane);
        leaving = kept(leaving + plane);
      }
    }
  }
};

// A window of kNearest columns to either side at the most: it reaches no further than the lanes
// beside a lane.
constexpr int32_t kNearest = kQuad;

template <int K>
class NearBox {
 public:
  static constexpr int kHalo = 1;  // lanes at both ends of a warp that own no column

  template <int D, typename Source>
  DIFFREG_DEVICE void move(const Source& source, const Rows& rows, int32_t x, int32_t) {
    typename Source::Change change(columns_);
    rows.for_planes<D>([&](int64_t enter, int64_t leave) {
      typename Source::Voxels entering{}, leaving{};
      if (rows.enters) entering = source.read(enter, x, source.width, source.whole);
      if (rows.leaves) leaving = source.read(leave, x, source.width, source.whole);
      if (rows.enters) change.enter(entering);
      if (rows.leaves) change.leave(leaving);
    });
    change.finish();
  }

  // Sums over the windows of one column after the other. They are made of two at a time: of all
  // four, they would not fit into registers beside the columns.
  class Row {
   public:
    DIFFREG_DEVICE Row(const NearBox& box, int32_t radius)
        : columns_(box.columns_), radius_(radius) {}

    DIFFREG_DEVICE void take(int j, double (&sums)[K]) {
      if (j % 2 == 0) {
        switch (radius_) {
          case 0: sum<0>(j); break;
          case 1: sum<1>(j); break;
          case 2: sum<2>(j); break;
          case 3: sum<3>(j); break;
          default: sum<4>(j);
        }
      }
      for (int k = 0; k < K; ++k) sums[k] = sums_[k][j % 2];
    }

   private:
    template <int radius>
    DIFFREG_DEVICE void sum(int first) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int j = first; j < first + 2; ++j) sums_[k][j - first] = window<radius>(k, j);
      }
    }
    // The lane's own columns of a window, and the nearest ones of the lanes beside it.
    template <int radius>
    DIFFREG_DEVICE double window(int k, int j) const {
      double sum = part(k, j - radius, j + radius);
      if (j < radius) sum += shuffle_from_left(part(k, kQuad + j - radius, kQuad - 1));
      if (j + radius >= kQuad) sum += shuffle_from_right(part(k, 0, j + radius - kQuad));
      return sum;
    }
    // Sum of the columns from first to last, as far as they are the lane's.
    DIFFREG_DEVICE double part(int k, int first, int last) const {
      double sum = 0;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        if (first <= i && i <= last) sum += columns_.of[k][i];
      }
      return sum;
    }

    const Terms<K>& columns_;
    int32_t radius_;
    double sums_[K][2];
  };

 private:
  Terms<K> columns_;
};

// Any window. A lane keeps what each of its columns adds to the window and what drops out of it as
// the window moves on to that column from the one before, and with the others a part of the window
// before the warp's first column: what is left is a prefix sum.
template <int K>
class AnyBox {
 public:
  static constexpr int kHalo = 0;

  template <int D, typename Source>
  DIFFREG_DEVICE void move(const Source& source, const Rows& rows, int32_t x, int32_t radius) {
    rows.for_planes<D>([&](int64_t enter, int64_t leave) {
      if (rows.enters) add(source, enter, x, radius, 1);
      if (rows.leaves) add(source, leave, x, radius, -1);
    });
  }

  // Sums over the windows of one column after the other.
  class Row {
   public:
    DIFFREG_DEVICE Row(const AnyBox& box, int32_t) : change_(box.change_) {
      for (int k = 0; k < K; ++k) {
        double own = 0, all = box.before_[k];
        for (int j = 0; j < kQuad; ++j) own += change_.of[k][j];
        double sum = own;
        for (int by = 1; by < kColumns; by *= 2) {
          const double left = shuffle_from_left(sum, by);
          if (static_cast<int>(threadIdx.x) >= by) sum += left;
          all += shuffle_from_right(all, by);
        }
        sum_[k] = warp_uniform(all) + (sum - own);
      }
    }
    DIFFREG_DEVICE void take(int j, double (&sums)[K]) {
      for (int k = 0; k < K; ++k) sums[k] = sum_[k] += change_.of[k][j];
    }

   private:
    const Terms<K>& change_;
    double sum_[K];
  };

 private:
  template <typename Source>
  DIFFREG_DEVICE void add(const Source& source, int64_t row, int32_t x, int32_t radius,
                          double sign) {
    const int32_t width = source.width, shift = kQuad * static_cast<int32_t>(threadIdx.x);
    const int32_t before = x - radius - 1, first = before - shift;
    const int32_t end = x - shift + radius < width ? x - shift + radius : width;
    change_.add(Source::terms(source.read(row, x + radius, width, false)), sign);
    change_.add(Source::terms(source.read(row, before, width, false)), -sign);
#pragma unroll 1
    for (int32_t at = (first > 0 ? first : 0) + shift; at < end; at += kQuad * kColumns) {
      const auto read = source.read(row, at, end, false);
      const Terms<K> terms = Source::terms(read);
      for (int k = 0; k < K; ++k) {
        for (int j = 0; j < kQuad; ++j) before_[k] += sign * terms.of[k][j];
      }
    }
  }

  Terms<K> change_;
  double before_[K] = {};
};

// A warp's strip of a plane, and this lane's columns of it.
struct Place {
  int64_t plane, within;  // within: number of the tile among those of its image
  int32_t z, y, end;      // rows [y, end); none for a warp without a strip
  int32_t x;              // the first of four columns, which may lie outside the image
  bool owns;              // not in the halo: these columns are the lane's to store
};

// The strips of all images, numbered along planes first, so that the warps of a block, and thus
// their loads, have most planes in common; then along rows. A tile is the eight of a block.
template <int halo>
struct Strips {
  static constexpr int32_t kOwned = kQuad * (kColumns - 2 * halo);

  int64_t planes;  // images
  int32_t depth, height, across, rows;
  int64_t per_plane;  // tiles

  explicit Strips(const Problem& problem)
      : planes(problem.planes()),
        depth(problem.depth),
        height(problem.height),
        across((problem.width + kOwned - 1) / kOwned),
        rows(rows_of(problem)),
        per_plane((strips() + kWarps - 1) / kWarps) {}

  DIFFREG_HD int64_t count() const { return planes * per_plane; }

  DIFFREG_DEVICE Place place(int64_t tile) const {
    const int64_t plane = tile / per_plane, within = tile - plane * per_plane;
    const int32_t warp = warp_uniform(static_cast<int32_t>(threadIdx.y));
    const int64_t strip = within * kWarps + warp, column = strip / depth, down = column / across;
    const int64_t first = down * rows;
    const int32_t y = first < height ? static_cast<int32_t>(first) : height;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) - halo;
    return {plane,
            within,
            static_cast<int32_t>(strip - column * depth),
            y,
            y < height - rows ? y + rows : height,
            static_cast<int32_t>(column - down * across) * kOwned + kQuad * lane,
            inside(lane, kColumns - 2 * halo)};
  }

 private:
  int64_t strips() const { return int64_t{depth} * across * ((height + rows - 1) / rows); }

  // Long strips, since each pays for the rows beside it, but where there is little to do enough of
  // them to keep a large GPU busy.
  int32_t rows_of(const Problem& problem) const {
    constexpr int64_t kEnough = 2048, kFewest = 16, kMost = 64;
    const int64_t most = std::max(kMost, 4 * int64_t{problem.radius});
    const int64_t wanted = planes * depth * across * height / kEnough;
    const int64_t down = (height - 1) / std::clamp(wanted, kFewest, most) + 1;
    return static_cast<int32_t>((height - 1) / down + 1);
  }
};

// Calls emit(y, sums) for the rows of a strip, in all lanes of the warp; of sums, it takes those of
// each column in turn.
template <int D, typename Box, typename Source, typename Emit>
DIFFREG_DEVICE void march(const Problem& problem, const Place& place, const Source& source,
                          const Emit& emit) {
  const int32_t radius = problem.radius, height = problem.height;
  const int32_t reach = radius < height ? radius : height;  // of the window, in rows
  const int32_t first_z = D == 2 || place.z < radius ? 0 : place.z - radius;
  const int32_t end_z =
      D == 2 || place.z >= problem.depth - radius ? problem.depth : place.z + radius + 1;
  const int64_t width = problem.width, plane = height * width, top = first_z * plane;
  const int32_t warm_up = place.y < reach ? -reach : place.y - 2 * reach;
  Box box;
#pragma unroll 1
  for (int32_t y = place.y < place.end ? warm_up : place.end; y < place.end; ++y) {
    const Rows rows{top + (y + reach) * width,
                    top + (y - reach - 1) * width,
                    inside(y + reach, height),
                    y > place.y && y > reach,
                    plane,
                    end_z - first_z};
    box.template move<D>(source, rows, place.x, radius);
    if (y < place.y) continue;
    emit(y, typename Box::Row(box, radius));
  }
}

}  // namespace diffreg::local_correlation
