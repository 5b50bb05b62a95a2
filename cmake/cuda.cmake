# CUDA kernels, wherever there is an nvcc: no GPU and no CUDA build of torch is needed. DIFFREG_CUDA
# (CMake or environment): "auto" looks for one, "off" builds the CPU core alone, a path names one.
set(DIFFREG_CUDA "$ENV{DIFFREG_CUDA}" CACHE STRING "auto, off, or the path of an nvcc")
set(architectures "75 80 86 89 90 100 120")
if(DEFINED ENV{DIFFREG_CUDA_ARCHITECTURES})
  set(architectures "$ENV{DIFFREG_CUDA_ARCHITECTURES}")
endif()
set(DIFFREG_CUDA_ARCHITECTURES "${architectures}" CACHE STRING
    "Compute capabilities; PTX of the last one serves what comes after")

set(DIFFREG_NVCC "")
if(DIFFREG_CUDA STREQUAL "" OR DIFFREG_CUDA STREQUAL "auto")
  find_program(found_nvcc nvcc NO_CACHE HINTS $ENV{CUDA_HOME}/bin
               PATHS /usr/local/cuda/bin ${Python_SITELIB}/nvidia/cu13/bin)
  if(found_nvcc)
    set(DIFFREG_NVCC ${found_nvcc})
  endif()
elseif(NOT DIFFREG_CUDA STREQUAL "off")
  if(NOT EXISTS ${DIFFREG_CUDA})
    message(FATAL_ERROR "DIFFREG_CUDA must be auto, off or the path of an nvcc, got ${DIFFREG_CUDA}")
  endif()
  set(DIFFREG_NVCC ${DIFFREG_CUDA})
endif()

# Older compilers know fewer architectures: PTX of the newest that this one knows stands for those.
function(diffreg_architectures result)
  execute_process(COMMAND ${DIFFREG_NVCC} --list-gpu-code OUTPUT_VARIABLE known)
  set(list "")
  foreach(architecture IN LISTS ARGN)
    if(known MATCHES "sm_${architecture}[^0-9]")
      list(APPEND list ${architecture})
    endif()
  endforeach()
  set(${result} ${list} PARENT_SCOPE)
endfunction()

# The toolkit's folder, which a script in front of nvcc does not tell.
function(diffreg_cudart result)
  execute_process(COMMAND ${DIFFREG_NVCC} -dryrun -E -x cu /dev/null ERROR_VARIABLE dryrun)
  string(REGEX MATCH "TOP=([^\n]+)" _ "${dryrun}")
  get_filename_component(top "${CMAKE_MATCH_1}" ABSOLUTE)
  find_file(cudart libcudart_static.a NO_CACHE NO_DEFAULT_PATH
            PATHS ${top}/lib64 ${top}/lib ${top}/targets/x86_64-linux/lib)
  if(NOT cudart)
    message(FATAL_ERROR "${DIFFREG_NVCC} has no libcudart_static.a beside it (${top})")
  endif()
  set(${result} ${cudart} PARENT_SCOPE)
endfunction()

# Adds the kernels and their drivers to a target.
function(diffreg_add_cuda target)
  separate_arguments(wanted UNIX_COMMAND "${DIFFREG_CUDA_ARCHITECTURES}")
  diffreg_architectures(architectures ${wanted})
  if(NOT architectures)
    message(FATAL_ERROR "${DIFFREG_NVCC} knows none of the architectures ${DIFFREG_CUDA_ARCHITECTURES}")
  endif()
  diffreg_cudart(cudart)
  set(flags -std=c++17 -O3 -Werror all-warnings -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra
      -Xptxas=-warn-spills,-warn-lmem-usage -t 2)
  foreach(architecture IN LISTS architectures)
    list(APPEND flags -gencode arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  list(GET architectures -1 newest)
  list(APPEND flags -gencode arch=compute_${newest},code=compute_${newest})
  file(GLOB kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/*/*.cu)
  foreach(kernel IN LISTS kernels)
    get_filename_component(name ${kernel} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/cuda
      COMMAND ${DIFFREG_NVCC} ${flags} -MD -MF ${object}.d -c ${kernel} -o ${object}
      DEPENDS ${kernel} DEPFILE ${object}.d COMMENT "Building CUDA object ${name}.o" VERBATIM)
    target_sources(${target} PRIVATE ${object})
  endforeach()
  file(GLOB drivers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/*/*_cuda.cpp)
  target_sources(${target} PRIVATE ${drivers})
  target_link_libraries(${target} PRIVATE ${cudart} rt dl pthread)
  string(REPLACE ";" " " listed "${architectures}")
  set(DIFFREG_CUDA_BUILT "${listed} ptx${newest}" PARENT_SCOPE)
  execute_process(COMMAND ${DIFFREG_NVCC} --version OUTPUT_VARIABLE version)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _ "${version}")
  set(DIFFREG_CUDA_RUNTIME "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()
