// One small kernel, right as it stands, with a fault that -DFAULT_<name> plants: what each detector
// of the emulation must catch. The sum of the neighbours' products over all blocks.
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "common/block_reduce.h"
#include "common/pack.h"

namespace {

using namespace diffreg;

struct Row {
  float voxel[kThreads + 1];
};

DIFFREG_DEVICE bool is_last_block_of_grid(unsigned* ticket) {
  DIFFREG_SHARED(bool, last);
  if (thread_index() == 0) {
#ifndef FAULT_missing_fence
    __threadfence();
#endif
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
#ifndef FAULT_missing_fence_behind
    __threadfence();
#endif
  }
  __syncthreads();
  return last;
}

__global__ void products(const float* image, int64_t count, double* partials, unsigned* ticket,
                         float* result, float* any_order) {
  DIFFREG_SHARED(Row, row);
  const int me = thread_index();
  const int64_t voxel = int64_t(blockIdx.x) * kThreads + me;
  row.voxel[me] = 0;
  if (me == 0) row.voxel[kThreads] = 0;
#ifdef FAULT_global_overrun
  row.voxel[me] = load(image + voxel);
#else
  if (inside(voxel, count)) row.voxel[me] = load(image + voxel);
#endif
#ifdef FAULT_misaligned_load
  if (me == 0) row.voxel[0] = load_pack<4>(image + 1).of[0];
#endif
#ifdef FAULT_index_overflow
  const int far = std::numeric_limits<int>::max() - 100 + me;
  if (far < 0) row.voxel[me] = 1;
#endif
#ifdef FAULT_divergent_barrier
  if (me < 100) __syncthreads();
#elif !defined(FAULT_missing_barrier)
  __syncthreads();
#endif
#ifdef FAULT_shared_overrun
  double sum[1] = {row.voxel[me] * row.voxel[me + 2]};
#else
  double sum[1] = {row.voxel[me] * row.voxel[me + 1]};
#endif
#ifdef FAULT_divergent_shuffle
  if (me % 2) sum[0] += __shfl_down_sync(0xffffffffu, sum[0], 1);
#endif
#ifdef FAULT_blocks_race
  store(result + 1, float(sum[0]));
#endif
#ifdef FAULT_order_dependent
  atomicAdd(any_order, float(sum[0]));
#endif
  (void)any_order, (void)count;
  reduce_block(sum);
  if (me == 0) store(partials + blockIdx.x, sum[0]);
  if (!is_last_block_of_grid(ticket)) return;
  double total[1] = {block_stride_reduce(partials, gridDim.x)};
  reduce_block(total);
  if (me == 0) store(result, float(total[0]));
}

}  // namespace

int main() try {
  const int64_t count = 3 * kThreads - 5, blocks = 3;
  std::vector<float> image(count);
  for (int64_t k = 0; k < count; ++k) image[k] = 0.1f + 1.0f / float(k + 1);
  std::vector<float> found[2];
  for (unsigned seed = 0; seed < 2; ++seed) {
    emulation_set(seed, 1 << 20, 0, 0);
    std::vector<double> partials(blocks);
    std::vector<float> result(3);
    unsigned ticket = 0;
    void* stream = nullptr;
    DIFFREG_LAUNCH(products, blocks, block_shape(), stream, image.data(), count, partials.data(),
                   &ticket, result.data(), result.data() + 2);
    found[seed] = result;
  }
  if (std::memcmp(found[0].data(), found[1].data(), 3 * sizeof(float)) != 0) {
    std::puts("another order differs");
    return 1;
  }
  std::puts("same bits");
  return 0;
} catch (const std::exception& error) {
  std::puts(error.what());
  return 1;
}
