// The Python module diffreg._C. Loading it runs the registrations of every operator in the library.
#include <pybind11/pybind11.h>

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = DIFFREG_VERSION;
  info["torch"] = DIFFREG_TORCH_VERSION;
  info["oldest_torch"] = DIFFREG_OLDEST_TORCH;
  info["compiler"] = DIFFREG_COMPILER;
  info["cpu_variant"] = "baseline";
  info["cuda_architectures"] = DIFFREG_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled operators of diffreg, registered as torch.ops.diffreg.*";
  module.def("build_info", &build_info,
             "Version, torch at build time, oldest torch at run time, compiler, CPU variant and "
             "CUDA architectures.");
}
