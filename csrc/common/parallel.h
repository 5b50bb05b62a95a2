// Fixed strips of rows: what a strip computes never depends on how many threads share the strips.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace diffreg {

constexpr int64_t kStripRows = 16;

inline int64_t strip_count(int64_t rows, int64_t strip_rows = kStripRows) {
  return (rows + strip_rows - 1) / strip_rows;
}

// Fewer voxels than this are not worth waking another thread.
constexpr int64_t kVoxelsPerThread = 1 << 14;

// Calls run(sample, strip, first_row, end_row) for every strip of every sample, in parallel.
template <typename Run>
void for_each_strip(int64_t samples, int64_t rows, int64_t row_voxels, const Run& run,
                    int64_t strip_rows = kStripRows) {
  const int64_t strips = strip_count(rows, strip_rows);
  const int64_t grain = kVoxelsPerThread / (strip_rows * std::max<int64_t>(row_voxels, 1)) + 1;
  torch::stable::parallel_for(0, samples * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % strips * strip_rows;
      run(index / strips, index % strips, first, std::min(first + strip_rows, rows));
    }
  });
}

}  // namespace diffreg
