// The words of CUDA that the kernels use, for g++: csrc/common/kernel.h includes this in place of
// cuda_runtime.h. A thread is a fiber, blocks run in turn; emulation.cpp holds the scheduler.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <typeinfo>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void*;

namespace emulation {

// Where a thread waits: all threads of a block (or lanes of a warp) must wait at one place.
struct Site {
  const char* file;
  int line;
};

extern int64_t grid_limit;
extern int64_t enough_tiles;

// What is launched: the file, the kernel's text, and its instance as a type's mangled name.
struct Kernel {
  const char *file, *text, *instance;
};
template <auto kernel>
struct Instance {};

// Counted as "<stem of the file>/<kernel>".
void launch(const Kernel& kernel, int64_t blocks, dim3 threads, const std::function<void()>& body);
void fill(void* memory, int value, size_t bytes);
void barrier(Site site);
void fence();
// Lane `source` of the warp gets to see what this lane gives; a source outside gives its own back.
void exchange(void* value, size_t bytes, int source, Site site);
int lane();
// The memory of one __shared__ variable of the running block, filled with NaN.
void* shared(const void* variable, size_t bytes);
void count_load(const void* address, size_t bytes);
void count_store(const void* address, size_t bytes);
void count_atomic(const void* address, size_t bytes);

template <typename T>
T shuffle_down(unsigned mask, T value, int offset, Site site) {
  (void)mask;
  static_assert(sizeof value == 4 || sizeof value == 8);
  exchange(&value, sizeof value, lane() + offset, site);
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  (void)mask;
  static_assert(sizeof value == 4 || sizeof value == 8);
  exchange(&value, sizeof value, source, site);
  return value;
}

template <typename T>
T shuffle_up(unsigned mask, T value, int offset, Site site) {
  (void)mask;
  static_assert(sizeof value == 4 || sizeof value == 8);
  exchange(&value, sizeof value, lane() < offset ? lane() : lane() - offset, site);
  return value;
}

// Compare and swap until nobody came between.
template <typename Word, typename T, typename Update>
T exchange_atomically(T* address, const Update& update) {
  static_assert(sizeof(Word) == sizeof(T));
  count_atomic(address, sizeof(T));
  Word* word = reinterpret_cast<Word*>(address);
  Word seen = __atomic_load_n(word, __ATOMIC_RELAXED), wanted;
  T old;
  do {
    std::memcpy(&old, &seen, sizeof old);
    const T updated = update(old);
    std::memcpy(&wanted, &updated, sizeof wanted);
  } while (
      !__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace emulation

// What the tests set, through ctypes too; the counts start again at nothing.
extern "C" __attribute__((visibility("default"))) void emulation_set(unsigned seed,
                                                                     int64_t grid_limit,
                                                                     int64_t enough_tiles,
                                                                     int counting);

#define __syncthreads() emulation::barrier({__FILE__, __LINE__})
#define __threadfence() emulation::fence()
#define __shfl_down_sync(mask, value, offset) \
  emulation::shuffle_down(mask, value, offset, {__FILE__, __LINE__})
#define __shfl_sync(mask, value, source) \
  emulation::shuffle(mask, value, source, {__FILE__, __LINE__})
#define __shfl_up_sync(mask, value, offset) \
  emulation::shuffle_up(mask, value, offset, {__FILE__, __LINE__})

inline int __float2int_rn(float value) { return static_cast<int>(std::lrint(value)); }
inline long long __float2ll_rn(float value) { return std::llrint(value); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return emulation::exchange_atomically<uint32_t>(address,
                                                  [=](unsigned old) { return old + value; });
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return emulation::exchange_atomically<uint64_t>(
      address, [=](unsigned long long old) { return old + value; });
}
inline float atomicAdd(float* address, float value) {
  return emulation::exchange_atomically<uint32_t>(address, [=](float old) { return old + value; });
}
inline double atomicAdd(double* address, double value) {
  return emulation::exchange_atomically<uint64_t>(address, [=](double old) { return old + value; });
}
