// CUDA driver only: voxels of any dtype as words of their size, which nearest copies.
#pragma once

#include "not_a_number.h"
#include "warp_cuda.h"

namespace diffreg::warp {

template <typename V, typename Run>
void with_word(const Tensor& image, const Run& run) {
  const auto bytes = not_a_number(image);
  V nan;
  std::memcpy(&nan, bytes.data(), sizeof nan);
  run(nan);
}

// Calls run(V{}) with the type of an image's voxels, and NaN in it.
template <typename Run>
void with_words(const Tensor& image, const Run& run) {
  switch (image.element_size()) {
    case 1: return with_word<uint8_t>(image, run);
    case 2: return with_word<uint16_t>(image, run);
    case 4: return with_word<uint32_t>(image, run);
    case 8: return with_word<uint64_t>(image, run);
    case 16: return with_word<TwoWords>(image, run);
    default: STD_TORCH_CHECK(false, "moving has a dtype of an unknown size");
  }
}

}  // namespace diffreg::warp
