// Stencils on images and fields that march along the first axis, from one layer to the next (a row
// of an image, a plane of a volume): a warp has 32 columns side by side, one a lane, keeps a
// rolling window of layers in registers (2.5-D blocking), and gets what stands beside a voxel along
// the last axis from the next lane by a shuffle. The rows beside a voxel of a volume are read
// through the cache; what is computed for them comes from the next warp (row_exchange.h).
#pragma once

#include "kernel.h"
#include "shuffle.h"

namespace diffreg {

constexpr int kMostLayers = 32, kFewestLayers = 8;  // of a strip, halo included
constexpr int kBatch = 4;                           // layers whose loads are in flight at once

// Sizes of an image in 32 bits. Drivers check that they fit, a volume's plane included.
template <int D>
struct Extent {
  int32_t size[D];
  int32_t layer;  // voxels from a layer to the next
  int64_t voxels;

  explicit Extent(const int64_t* sizes) : layer(1), voxels(1) {
    for (int k = 0; k < D; ++k) size[k] = static_cast<int32_t>(sizes[k]);
    for (int k = 1; k < D; ++k) layer *= size[k];
    voxels = int64_t{layer} * size[0];
  }
  DIFFREG_HD int32_t layers() const { return size[0]; }
  DIFFREG_HD int32_t width() const { return size[D - 1]; }
};

// A lane's column: its place along the last axis and, in a volume, before it along the rows. It may
// lie outside the image.
template <int D>
struct Across {
  int32_t at[D - 1];

  DIFFREG_DEVICE int32_t x() const { return at[D - 2]; }
  DIFFREG_DEVICE bool inside(const Extent<D>& extent) const {
    bool all = true;
    for (int k = 1; k < D; ++k) all &= diffreg::inside(at[k - 1], extent.size[k]);
    return all;
  }
  // Voxels from a layer's first one; beyond the image its border repeats.
  DIFFREG_DEVICE int32_t offset(const Extent<D>& extent) const {
    int32_t sum = clamped(x(), extent.width());
    if constexpr (D == 3) sum += clamped(at[0], extent.size[1]) * extent.width();
    return sum;
  }
};

// Tiles that keep a large GPU busy.
inline int64_t enough_tiles() {
#ifdef DIFFREG_EMULATION
  return emulation::enough_tiles;
#else
  return 512;
#endif
}

// The strips of all images (an image's channel or a field's sample), numbered along the last axis
// first. Their halo: `left` and `right` lanes, there for the others' shuffles, the first `top`
// layers, for those that follow, and in a volume `above` and `below` rows. In 2-D a tile, which is
// a block's, is eight strips, a warp each; in 3-D one strip of eight rows. A lane has a column, or
// more that are adjacent. Strips are long, since each pays for the layers beside it, but where that
// makes too few tiles to keep a large GPU busy.
template <int D, int left, int right, int top, int above = 0, int below = 0, int columns = 1>
struct Strips {
  static constexpr int kOwnedColumns = (kColumns - left - right) * columns;
  static constexpr int kOwnedRows = kRows - above - below;

  int64_t images;
  Extent<D> extent;
  int32_t owned_layers;
  int32_t across, along;  // strips beside one another along the last axis, and along the rows
  int64_t per_image;      // tiles

  Strips(int64_t images, const int64_t* size)
      : images(images),
        extent(size),
        across(parts(extent.width(), kOwnedColumns)),
        along(D == 2 ? 1 : parts(extent.size[1], kOwnedRows)) {
    int32_t layers = kMostLayers;
    cut(layers);
    while (layers > kFewestLayers && count() < enough_tiles()) cut(layers /= 2);
  }

  DIFFREG_HD int64_t count() const { return images * per_image; }

  // What a lane works on: layers [first, end) of its column, which may lie outside the image. It
  // stores results only where it `owns` the column, not in the halo; a warp without a strip has no
  // layers.
  struct Place {
    int64_t image, within;  // within: number of the tile in its image
    int32_t first, end;
    Across<D> column;
    bool owns;
  };
  DIFFREG_DEVICE Place place(int64_t tile) const {
    const int64_t image = tile / per_image, within = tile - image * per_image;
    const int32_t warp = warp_uniform(static_cast<int32_t>(threadIdx.y));
    const int32_t lane = threadIdx.x;
    int64_t strip = within;
    if constexpr (D == 2) strip = within * kWarps + warp;
    const int64_t row = strip / across;
    bool owns = left <= lane && lane < kColumns - right;
    Across<D> column;
    column.at[D - 2] =
        static_cast<int32_t>(strip - row * across) * kOwnedColumns + (lane - left) * columns;
    int64_t down = row;
    if constexpr (D == 3) {
      down = row / along;
      column.at[0] = static_cast<int32_t>(row - down * along) * kOwnedRows + warp - above;
      owns &= above <= warp && warp < kRows - below;
    }
    const int64_t start = down * owned_layers;
    const int32_t layers = extent.layers();
    const int32_t first = start < layers ? static_cast<int32_t>(start) : layers;
    return {image,  within,
            first,  first < layers - owned_layers ? first + owned_layers : layers,
            column, owns && column.inside(extent)};
  }

 private:
  static int32_t parts(int32_t size, int32_t of) { return (size + of - 1) / of; }

  // Into strips of so many layers.
  void cut(int32_t layers) {
    owned_layers = layers - top;
    const int64_t strips = int64_t{across} * along * parts(extent.layers(), owned_layers);
    per_image = D == 2 ? (strips + kWarps - 1) / kWarps : strips;
  }
};

// Calls step(z, layer, inner) for the layers from `first` on, a batch at a time until `end` is
// reached: what read(z, inner) loads for them is in flight together. inner is true for a batch of
// layers in [0, inside), a constant, so that what depends on it costs nothing there.
template <int count = kBatch, typename Read, typename Step>
DIFFREG_DEVICE void march(int32_t first, int32_t end, int32_t inside, const Read& read,
                          const Step& step) {
#pragma unroll 1
  for (int32_t z = first; z < end; z += count) {
    const auto batch = [&](bool inner) {
      decltype(read(z, inner)) layer[count];
#pragma unroll
      for (int k = 0; k < count; ++k) layer[k] = read(z + k, inner);
#pragma unroll
      for (int k = 0; k < count; ++k) step(z + k, layer[k], inner);
    };
    if (0 <= z && z + count <= inside) {
      batch(true);
    } else {
      batch(false);
    }
  }
}

// The same layer by layer, each read while the one before it is worked on: where a step takes so
// many registers that few warps are resident.
template <typename Read, typename Step>
DIFFREG_DEVICE void march_prefetched(int32_t first, int32_t end, int32_t inside, const Read& read,
                                     const Step& step) {
  auto next = read(first, false);
#pragma unroll 1
  for (int32_t z = first; z < end; ++z) {
    const auto layer = next;
    const auto both = [&](bool inner) {
      next = read(z + 1, inner);
      step(z, layer, inner);
    };
    if (0 <= z && z + 2 <= inside) {
      both(true);
    } else {
      both(false);
    }
  }
}

}  // namespace diffreg
