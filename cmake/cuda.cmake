# CUDA kernels, built without a GPU. DIFFREG_CUDA, of CMake or else of the environment: nothing builds them
# where torch is a CUDA build and an nvcc is found, "auto" wherever an nvcc is found (no CUDA build of torch is
# needed), "off" never, a path with that nvcc. Read at every configuration: a build folder remembers none.
if("${DIFFREG_CUDA}" STREQUAL "")
  set(DIFFREG_CUDA "$ENV{DIFFREG_CUDA}")
endif()
if("${DIFFREG_CUDA_ARCHITECTURES}" STREQUAL "")
  set(DIFFREG_CUDA_ARCHITECTURES "$ENV{DIFFREG_CUDA_ARCHITECTURES}")
endif()
# Compute capabilities; code of 8.0 runs on 8.6 and 8.9 too, PTX of the last one serves what comes after.
if(DIFFREG_CUDA_ARCHITECTURES STREQUAL "")
  set(DIFFREG_CUDA_ARCHITECTURES "75 80 90 100 120")
endif()

set(DIFFREG_NVCC "")
if(DIFFREG_CUDA STREQUAL "" AND "${DIFFREG_TORCH_CUDA}" STREQUAL "")
  message(STATUS "CUDA kernels are left out: torch is a CPU build (DIFFREG_CUDA=auto builds them)")
elseif(DIFFREG_CUDA STREQUAL "" OR DIFFREG_CUDA STREQUAL "auto")
  find_program(found_nvcc nvcc NO_CACHE HINTS $ENV{CUDA_HOME}/bin
               PATHS /usr/local/cuda/bin ${DIFFREG_TORCH_DIR}/../nvidia/cu13/bin)
  if(found_nvcc)
    set(DIFFREG_NVCC ${found_nvcc})
  else()
    message(STATUS "CUDA kernels are left out: no nvcc was found")
  endif()
elseif(NOT DIFFREG_CUDA STREQUAL "off")
  if(NOT EXISTS ${DIFFREG_CUDA} OR IS_DIRECTORY ${DIFFREG_CUDA})
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

# The release of the compiler, such as 13.0.
function(diffreg_cuda_release result)
  execute_process(COMMAND ${DIFFREG_NVCC} --version OUTPUT_VARIABLE version)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _ "${version}")
  set(${result} "${CMAKE_MATCH_1}" PARENT_SCOPE)
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
  diffreg_cuda_release(release)
  # Drivers unpack it from 550 on: every driver that runs CUDA 13, not every one that runs CUDA 12.
  if(release VERSION_GREATER_EQUAL 13.0)
    list(APPEND flags --compress-mode=size)
  endif()
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
  set(DIFFREG_CUDA_RUNTIME "${release}" PARENT_SCOPE)
endfunction()
