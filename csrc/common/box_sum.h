// CPU only: sums over a box window cut at the border, at the same cost for any window: running sums
// along the rows, then down the columns, in double. Called by the driver of local_correlation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace diffreg {

constexpr int64_t kColumns = 32;  // columns whose running sums go down together

inline int64_t column_blocks(int64_t width) { return (width + kColumns - 1) / kColumns; }

// Voxels of the window around index i that lie inside an axis.
inline int64_t window_count(int64_t i, int64_t radius, int64_t size) {
  return std::min(i + radius, size - 1) - std::max<int64_t>(i - radius, 0) + 1;
}

// fill(y, x, terms) writes the K terms of a voxel; take(block, y, x, sums) gets their box sums.
// Every column is summed from the top in one go, so that threads share blocks, never a sum.
template <int K, typename Fill, typename Take>
void box_sums(int64_t height, int64_t width, int64_t radius, const Fill& fill, const Take& take) {
  std::vector<double> rows(K * height * width);  // (H, W, K), sums along the row
  const int64_t row_grain = kVoxelsPerThread / width + 1;
  torch::stable::parallel_for(0, height, row_grain, [&](int64_t begin, int64_t end) {
    std::vector<double> terms(K * width);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < width; ++x) fill(y, x, &terms[K * x]);
      double running[K] = {};
      double* out = &rows[y * width * K];
      const auto add = [&](int64_t x, double sign) {
        for (int k = 0; k < K; ++k) running[k] += sign * terms[K * x + k];
      };
      for (int64_t x = 0; x < std::min(radius, width); ++x) add(x, 1);
      for (int64_t x = 0; x < width; ++x) {
        if (x + radius < width) add(x + radius, 1);
        if (x - radius > 0) add(x - radius - 1, -1);
        std::copy(running, running + K, out + K * x);
      }
    }
  });
  const int64_t block_grain = kVoxelsPerThread / (kColumns * height) + 1;
  torch::stable::parallel_for(
      0, column_blocks(width), block_grain, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * kColumns, last = std::min(first + kColumns, width);
          double running[kColumns * K] = {};
          const auto add = [&](int64_t y, double sign) {
            const double* row = &rows[(y * width + first) * K];
            for (int64_t i = 0; i < (last - first) * K; ++i) running[i] += sign * row[i];
          };
          for (int64_t y = 0; y < std::min(radius, height); ++y) add(y, 1);
          for (int64_t y = 0; y < height; ++y) {
            if (y + radius < height) add(y + radius, 1);
            if (y - radius > 0) add(y - radius - 1, -1);
            for (int64_t x = first; x < last; ++x) take(block, y, x, running + (x - first) * K);
          }
        }
      });
}

}  // namespace diffreg
