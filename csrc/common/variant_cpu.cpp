// What a library of CPU operators has once: their schemas, and which instruction set it was
// compiled for, from its own mouth: what the compiler was told, not what the build called it.
#include <torch/csrc/stable/library.h>

namespace {

// Python reads the same file where there is no compiled core (diffreg/ops/_core.py).
constexpr const char* kSchemas[] = {
#include "../../diffreg/ops/schemas.inc"
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  for (const char* schema : kSchemas) library.def(schema);
}

extern "C" __attribute__((visibility("default"))) const char* diffreg_cpu_variant() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "baseline";
#endif
}
