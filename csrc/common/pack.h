// Voxels side by side that a lane has together: loads of 16 bytes, or of less where all of them are
// that, bring them where the row is aligned to it.
#pragma once

#include "kernel.h"

namespace diffreg {

template <typename S, int V>
struct alignas(V * sizeof(S) < 16 ? V * sizeof(S) : 16) Pack {
  S of[V];
};

// Columns a lane of an image stored as S: 16 bytes of the arithmetic's type.
template <typename S>
constexpr int kPackColumns = 16 / sizeof(Arithmetic<S>);

template <int V, typename S>
DIFFREG_DEVICE Pack<Arithmetic<S>, V> load_pack(const S* address) {
  const auto raw = load_raw(reinterpret_cast<const Pack<S, V>*>(address));
  Pack<Arithmetic<S>, V> pack;
  for (int j = 0; j < V; ++j) pack.of[j] = static_cast<Arithmetic<S>>(raw.of[j]);
  return pack;
}

template <int V, typename S>
DIFFREG_DEVICE void store_pack(S* address, const Pack<Arithmetic<S>, V>& pack) {
  Pack<S, V> raw;
  for (int j = 0; j < V; ++j) raw.of[j] = static_cast<S>(pack.of[j]);
  store_raw(reinterpret_cast<Pack<S, V>*>(address), raw);
}

// Whether every row of an image is made of whole packs; null is no image.
template <int V, typename S>
bool rows_are_packed(const S* image, int64_t width) {
  return width % V == 0 && reinterpret_cast<uintptr_t>(image) % alignof(Pack<S, V>) == 0;
}

}  // namespace diffreg
