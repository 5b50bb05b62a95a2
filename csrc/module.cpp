// The Python module diffreg._C: what the core was built from, and which of its CPU variants this
// processor runs. Loading it registers the CUDA kernels, where it has any.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <sstream>
#include <string>

namespace {

bool runs(const std::string& variant) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (variant == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (variant == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return variant == "baseline";
}

// Of those that were built, slowest first, with blanks between.
std::string cpu_variants() {
  std::string found;
  std::istringstream built(DIFFREG_CPU_VARIANTS);
  for (std::string variant; built >> variant;) {
    if (runs(variant)) found += (found.empty() ? "" : " ") + variant;
  }
  return found;
}

// The one to load: that of DIFFREG_CPU, else the fastest.
std::string cpu_variant() {
  const char* wanted = std::getenv("DIFFREG_CPU");
  if (wanted && *wanted) return wanted;
  const std::string running = cpu_variants();
  return running.substr(running.rfind(' ') + 1);
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = DIFFREG_VERSION;
  info["torch"] = DIFFREG_TORCH_VERSION;
  info["oldest_torch"] = DIFFREG_OLDEST_TORCH;
  info["compiler"] = DIFFREG_COMPILER;
  info["cpu_variant"] = cpu_variant();
  info["cpu_variants"] = cpu_variants();
  info["cuda_architectures"] = DIFFREG_CUDA_ARCHITECTURES;
  info["cuda_runtime"] = DIFFREG_CUDA_RUNTIME;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled operators of diffreg, registered as torch.ops.diffreg.*";
  module.def("build_info", &build_info,
             "Version, torch at build time, oldest torch at run time, compiler, CPU variants, CUDA "
             "architectures and runtime.");
}
