// Sum of the mask's weights, sample by sample, for the backward passes that divide by it.
#pragma once

#include "block_reduce.h"

namespace diffreg {

constexpr int64_t kMaskChunk = 16 * kThreads;

DIFFREG_HD int64_t mask_tiles(int64_t voxels) { return (voxels + kMaskChunk - 1) / kMaskChunk; }

// Doubles of workspace: the totals, then the reduction's.
inline int64_t mask_total_doubles(int64_t samples, int64_t voxels) {
  return samples + reduction_doubles(samples, 1, mask_tiles(voxels));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    mask_total_kernel(int64_t samples, int64_t voxels,
                      const T* mask,  // (N, 1, *S)
                      Reduction reduction,
                      double* total) {  // (N)
  const int64_t tiles = mask_tiles(voxels);
  for (int64_t tile = blockIdx.x; tile < samples * tiles; tile += gridDim.x) {
    const int64_t n = tile / tiles, first = tile % tiles * kMaskChunk;
    double sum[1] = {0};
    for (int64_t voxel = first + thread_index(); voxel < first + kMaskChunk; voxel += kThreads) {
      if (inside(voxel, voxels)) sum[0] += load(mask + n * voxels + voxel);
    }
    reduce_tiles(reduction, sum, n, tile % tiles, tiles,
                 [&](const double* all) { store(total + n, all[0]); });
  }
}

// Fills `workspace` and returns the totals (N); null without a mask, where each is the number of
// voxels.
template <typename T>
const double* launch_mask_total(int64_t samples, int64_t voxels, const T* mask, double* workspace,
                                void* stream) {
  if (!mask) return nullptr;
  const int64_t tiles = mask_tiles(voxels);
  const Reduction reduction = make_reduction(workspace + samples, samples, 1, tiles, stream);
  DIFFREG_LAUNCH(mask_total_kernel<T>, samples * tiles, block_shape(), stream, samples, voxels,
                 mask, reduction, workspace);
  return workspace;
}

// 1 / (sum of the weights), 0 where there is nothing to average.
DIFFREG_DEVICE double per_voxel(const double* total, int64_t n, int64_t voxels) {
  const double weight = total ? load(total + n) : double(voxels);
  return weight == 0 ? 0 : 1 / weight;
}

}  // namespace diffreg
