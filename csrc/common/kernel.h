// What a CUDA kernel is written with: launch, shared memory, loads and stores of any storage type.
// Included by .cu files only. With DIFFREG_EMULATION the same source runs on the CPU
// (tests/emulation).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef DIFFREG_EMULATION
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include "host_device.h"
#include "storage.h"

#define DIFFREG_DEVICE __device__ __forceinline__

// Calls a kernel with `blocks` blocks, or as many as a launch may have: kernels stride over the
// rest. A kernel with commas in its name stands in parentheses.
#ifdef DIFFREG_EMULATION
#define DIFFREG_LAUNCH(kernel, blocks, threads, stream, ...)                          \
  (static_cast<void>(stream),                                                         \
   emulation::launch({__FILE__, #kernel, typeid(emulation::Instance<kernel>).name()}, \
                     ::diffreg::grid_of(blocks), threads, [&] { kernel(__VA_ARGS__); }))
#define DIFFREG_SHARED(Type, name)       \
  static const char name##_variable = 0; \
  Type& name = *static_cast<Type*>(emulation::shared(&name##_variable, sizeof(Type)))
#else
#define DIFFREG_LAUNCH(kernel, blocks, threads, stream, ...)                      \
  do {                                                                            \
    const dim3 grid(static_cast<unsigned>(::diffreg::grid_of(blocks)));           \
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    ::diffreg::check_launch(#kernel);                                             \
  } while (false)
#define DIFFREG_SHARED(Type, name) __shared__ Type name
#endif

// instances(D, S) for every storage type S, of images and of volumes.
#define DIFFREG_EACH_STORAGE(instances, D) \
  instances(D, float) instances(D, double) instances(D, Half) instances(D, BFloat16)
#define DIFFREG_EACH_CASE(instances) \
  DIFFREG_EACH_STORAGE(instances, 2) \
  DIFFREG_EACH_STORAGE(instances, 3)

namespace diffreg {

constexpr int kColumns = 32, kRows = 8;  // threads of a block: a warp along a row
constexpr int kThreads = kColumns * kRows;
constexpr int kWarps = kThreads / 32;
// Blocks of a multiprocessor for which registers must do: what fits without spilling.
constexpr int kResident = 2;
template <typename S>
constexpr int kResidentOf = sizeof(Arithmetic<S>) == 8 ? 2 : 4;

inline dim3 block_shape() { return dim3(kColumns, kRows); }

inline int64_t grid_of(int64_t blocks) {
#ifdef DIFFREG_EMULATION
  const int64_t limit = emulation::grid_limit;
#else
  const int64_t limit = 2147483647;
#endif
  return blocks < limit ? blocks : limit;
}

#ifdef DIFFREG_EMULATION
inline void zero(void* memory, size_t bytes, void*) { emulation::fill(memory, 0, bytes); }
#else
inline void check_launch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}
inline void zero(void* memory, size_t bytes, void* stream) {
  cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
  check_launch("memset");
}
#endif

DIFFREG_DEVICE int thread_index() { return threadIdx.y * kColumns + threadIdx.x; }

DIFFREG_DEVICE bool inside(int64_t index, int64_t size) { return 0 <= index && index < size; }
DIFFREG_DEVICE bool inside(int32_t index, int32_t size) { return 0 <= index && index < size; }
// By one comparison: an axis has no negative size.
DIFFREG_DEVICE bool inside_axis(int32_t index, int32_t size) {
  return static_cast<uint32_t>(index) < static_cast<uint32_t>(size);
}

DIFFREG_DEVICE int64_t clamped(int64_t index, int64_t size) {
  return index < 0 ? 0 : (index < size ? index : size - 1);
}
DIFFREG_DEVICE int32_t clamped(int32_t index, int32_t size) {
  return index < 0 ? 0 : (index < size ? index : size - 1);
}

// Row `index` of a plane, or what stands at a column of it. Found again wherever it is needed, in
// three instructions: the compiler would keep offsets in registers, two each, take four to multiply
// what it has widened before, and add columns before it scales.
template <typename S>
DIFFREG_DEVICE S* row_of(S* plane, int32_t index, int32_t width) {
#ifdef DIFFREG_EMULATION
  return plane + int64_t{index} * width;
#else
  int64_t offset;
  asm volatile("mul.wide.s32 %0, %1, %2;" : "=l"(offset) : "r"(index), "r"(width));
  S* row = plane + offset;
  asm volatile("" : "+l"(row));
  __builtin_assume(__isGlobal(row));
  return row;
#endif
}

// Keeps what was computed in registers: the compiler would compute it anew wherever it is needed.
DIFFREG_DEVICE int64_t kept(int64_t number) {
#ifndef DIFFREG_EMULATION
  asm volatile("" : "+l"(number));
#endif
  return number;
}
template <typename S>
DIFFREG_DEVICE const S* kept(const S* memory) {
#ifndef DIFFREG_EMULATION
  asm volatile("" : "+l"(memory));
  __builtin_assume(__isGlobal(memory));
#endif
  return memory;
}

// Every access to global memory goes through load and store, where the emulation counts them.
template <typename S>
DIFFREG_DEVICE S load_raw(const S* address) {
#ifdef DIFFREG_EMULATION
  emulation::count_load(address, sizeof(S));
#endif
  return *address;
}
template <typename S>
DIFFREG_DEVICE Arithmetic<S> load(const S* address) {
  return static_cast<Arithmetic<S>>(load_raw(address));
}
template <typename T>
DIFFREG_DEVICE T load(const PerSample<T>& scalar, int64_t sample) {
  return scalar.each ? load(scalar.each + sample) : scalar.all;
}
template <typename S>
DIFFREG_DEVICE void store_raw(S* address, S value) {
#ifdef DIFFREG_EMULATION
  emulation::count_store(address, sizeof(S));
#endif
  *address = value;
}
template <typename S>
DIFFREG_DEVICE void store(S* address, Arithmetic<S> value) {
  store_raw(address, static_cast<S>(value));
}

}  // namespace diffreg
