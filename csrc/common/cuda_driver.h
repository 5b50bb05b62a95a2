// What the CUDA drivers share: device, stream, checks, workspace and the choice of a storage type.
// In the emulation (tests/emulation) the device is the CPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "check.h"
#include "storage.h"

#ifdef DIFFREG_EMULATION
#define DIFFREG_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(diffreg_emulation, CPU, library)
#else
#define DIFFREG_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(diffreg, CUDA, library)
#endif

#ifndef DIFFREG_EMULATION
// Of libtorch_cuda since torch 2.0; a CPU build of torch lacks it, so the reference is weak. The
// stable ABI's own way to a stream's handle came with torch 2.13 only.
extern "C" [[gnu::weak]] int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace diffreg::cuda {

// Makes the tensor's device current, and knows the stream that torch works on there.
class Device {
 public:
#ifdef DIFFREG_EMULATION
  explicit Device(const Tensor& tensor) : index_(tensor.get_device_index()) {}
  void* stream() const { return nullptr; }
#else
  explicit Device(const Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(tensor.get_device_index()) {}
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }
#endif

  void check(const char* name, const Tensor& tensor) const {
#ifdef DIFFREG_EMULATION
    const bool here = tensor.is_cpu();
#else
    const bool here = tensor.is_cuda() && tensor.get_device_index() == index_;
#endif
    STD_TORCH_CHECK(here, name, " must be on the device of the other inputs");
  }

 private:
  int32_t index_;
#ifndef DIFFREG_EMULATION
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// Kernels count rows and columns in 32 bits, and the voxels of a volume's plane.
inline void check_extent(const char* name, const Tensor& tensor) {
  check_axes(tensor);
  if (tensor.dim() == 5 && tensor.size(4) > 0) {
    STD_TORCH_CHECK(tensor.size(3) < (int64_t{1} << 31) / tensor.size(4), name,
                    " must have planes of fewer than 2^31 voxels, got ", shape_of(tensor));
  }
}

inline void check_image(const Device& device, const char* name, const Tensor& image) {
  check_image_shape(name, image);
  check_extent(name, image);
  device.check(name, image);
}

inline void check_displacement(const Device& device, const Tensor& displacement) {
  check_displacement_shape(displacement);
  check_extent("displacement", displacement);
  device.check("displacement", displacement);
}

// Shape, dtype and device of an input, made contiguous.
inline Tensor checked(const Device& device, const char* name, const Tensor& tensor,
                      const std::vector<int64_t>& shape, ScalarType dtype) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t k = 0; same && k < tensor.dim(); ++k) same = tensor.size(k) == shape[k];
  STD_TORCH_CHECK(same, name, " has the wrong shape: ", shape_of(tensor));
  check_dtype(name, tensor, dtype);
  device.check(name, tensor);
  return torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> checked(const Device& device, const char* name,
                                     const std::optional<Tensor>& tensor,
                                     const std::vector<int64_t>& shape, ScalarType dtype) {
  if (!tensor) return std::nullopt;
  return checked(device, name, *tensor, shape, dtype);
}

// What is computed in with inputs of a storage type; scalars come and go in it.
inline ScalarType arithmetic_of(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A scalar a sample, (N).
inline Tensor checked_scalars(const Device& device, const char* name, const Tensor& scalars,
                              const Tensor& image) {
  return checked(device, name, scalars, {image.size(0)}, arithmetic_of(image.scalar_type()));
}

// The same, or one scalar for all samples: expanded from one on the host, where it can be read
// without waiting for the device.
struct Scalars {
  Tensor each;
  bool on_host = false;

  Scalars() = default;
  Scalars(const Device& device, const char* name, const Tensor& scalars, const Tensor& image)
      : each(scalars) {
    on_host =
        scalars.is_cpu() && scalars.dim() == 1 && (scalars.size(0) <= 1 || scalars.stride(0) == 0);
    if (!on_host) {
      each = checked_scalars(device, name, scalars, image);
      return;
    }
    STD_TORCH_CHECK(scalars.size(0) == image.size(0), name,
                    " has the wrong shape: ", shape_of(scalars));
    check_dtype(name, scalars, arithmetic_of(image.scalar_type()));
  }

  template <typename T>
  PerSample<T> as() const {
    const T* data = static_cast<const T*>(each.const_data_ptr());
    if (each.numel() == 0) return {nullptr, T(0)};
    return on_host ? PerSample<T>{nullptr, *data} : PerSample<T>{data, T(0)};
  }
};

inline Tensor new_scalars(const Tensor& image) {
  return torch::stable::new_empty(image, {image.size(0)}, arithmetic_of(image.scalar_type()));
}

// The mask (N, 1, *S) of an image. In the type of the arithmetic: weights that 16 bits do not
// hold would round, or leave its range, on a GPU alone.
inline std::optional<Tensor> checked_mask(const Device& device, const std::optional<Tensor>& mask,
                                          const Tensor& image) {
  return checked(device, "mask", mask, mask_shape(image), arithmetic_of(image.scalar_type()));
}

// Calls run(S{}) with the storage type of a tensor.
template <typename Run>
void dispatch_storage(const char* name, const Tensor& tensor, const Run& run) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::Half: return run(Half{});
    case ScalarType::BFloat16: return run(BFloat16{});
    default: STD_TORCH_CHECK(false, name, " must be float64, float32, float16 or bfloat16");
  }
}

// Calls run<D, S>() with the number of a tensor's spatial axes and its storage type.
template <typename Run>
void dispatch_case(const char* name, const Tensor& tensor, const Run& run) {
  dispatch_dimensions(tensor, [&](auto dimensions) {
    dispatch_storage(name, tensor, [&](auto zero) {
      run.template operator()<decltype(dimensions)::value, decltype(zero)>();
    });
  });
}

template <typename S>
const S* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const S*>(tensor->const_data_ptr()) : nullptr;
}

template <typename S>
const S* data(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

template <typename S>
S* output(Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

// Scratch memory that lives until the stream has used it: torch's allocator knows the stream.
inline Tensor workspace(const Tensor& like, int64_t doubles) {
  return torch::stable::new_empty(like, {doubles}, ScalarType::Double);
}

}  // namespace diffreg::cuda
