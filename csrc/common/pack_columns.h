// Where a lane's columns lie in an image, and how they are read and written: packs of voxels, whose
// border is that of the image mirrored.
#pragma once

#include "columns.h"
#include "pack.h"

namespace diffreg {

// Beyond an image its voxels come again in reverse order. So the border needs no case of its own:
// a central difference is that of the repeated border, and the gradient to it goes on with its sign
// changed, which is what the adjoint asks of it.
DIFFREG_DEVICE int32_t reflected(int32_t index, int32_t size) {
  const int32_t from = index < 0 ? -1 - index : (index < size ? index : 2 * size - 1 - index);
  return clamped(from, size);
}

// So many voxels further, in one instruction: the compiler would take three to widen, scale and
// add.
template <typename S>
DIFFREG_DEVICE const S* further(const S* from, int32_t voxels) {
#ifdef DIFFREG_EMULATION
  return from + voxels;
#else
  const S* to;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(to) : "r"(voxels), "n"(sizeof(S)), "l"(from));
  __builtin_assume(__isGlobal(to));
  return to;
#endif
}

// Where a lane's columns lie in a layer, and how the rows are read: as packs where all of them are
// made of whole packs, column by column otherwise.
template <int D, int V>
struct PackColumns {
  Extent<D> extent;
  int32_t x;
  int32_t own;            // offset in a layer
  int32_t before, after;  // from there to the rows beside, in a volume
  bool packed;

  DIFFREG_DEVICE PackColumns(const Extent<D>& extent, const Across<D>& across, bool packed)
      : extent(extent), x(across.x()), own(0), before(0), after(0), packed(packed) {
    if (packed) own = clamped(x, extent.width() - V + 1);
    if constexpr (D == 3) {
      const auto row = [&](int32_t y) { return reflected(y, extent.size[1]) * extent.width(); };
      const int32_t y = across.at[0];
      own += row(y);
      before = row(y - 1) - row(y);
      after = row(y + 1) - row(y);
    }
  }

  DIFFREG_DEVICE bool at_left() const { return x == 0; }
  DIFFREG_DEVICE bool at_right() const { return x + V == extent.width(); }

  // The first layer of the columns.
  template <typename S>
  DIFFREG_DEVICE S* top(S* image) const {
    return image + own;
  }
  template <typename S>
  DIFFREG_DEVICE S* layer(S* top, int32_t z, bool inner) const {
    return row_of(top, inner ? z : reflected(z, extent.layers()), extent.layer);
  }
  template <typename S>
  DIFFREG_DEVICE Pack<Arithmetic<S>, V> load(const S* from, bool whole) const {
    if (whole) return load_pack<V>(from);
    Pack<Arithmetic<S>, V> pack;
    for (int j = 0; j < V; ++j) {
      pack.of[j] = diffreg::load(further(from, reflected(x + j, extent.width())));
    }
    return pack;
  }
  // The columns that lie in the image, or adds to what is there; a lane that owns its columns
  // starts inside.
  template <typename S>
  DIFFREG_DEVICE void store(S* top, int32_t z, Pack<Arithmetic<S>, V> pack,
                            bool accumulate = false) const {
    S* to = layer(top, z, true);
    if (packed) {
      if (accumulate) {
        const auto there = load_pack<V>(static_cast<const S*>(to));
        for (int j = 0; j < V; ++j) pack.of[j] += there.of[j];
      }
      return store_pack<V>(to, pack);
    }
    for (int j = 0; j < V; ++j) {
      if (!inside(x + j, extent.width())) continue;
      S* at = to + x + j;
      diffreg::store(at, accumulate ? diffreg::load(at) + pack.of[j] : pack.of[j]);
    }
  }
  // Of sums column by column: those of the image, where a lane owns them.
  template <typename T>
  DIFFREG_DEVICE double owned_sum(bool owns, const T (&sums)[V]) const {
    double sum = 0;
    for (int j = 0; j < V; ++j) {
      if (owns && inside(x + j, extent.width())) sum += sums[j];
    }
    return sum;
  }
};

}  // namespace diffreg
