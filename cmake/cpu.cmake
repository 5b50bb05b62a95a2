# The CPU operators once for every instruction set; diffreg/ops/_core.py loads the best that runs.
set(variants baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND variants avx2 avx512)
endif()
set(flags_baseline "")
# Tuned for processors of that kind: generic tuning does not gather.
set(flags_avx2 -mavx2 -mfma -mtune=haswell)
set(flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
    -mtune=skylake-avx512)

function(diffreg_add_cpu_variants)
  file(GLOB drivers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/*/*_cpu.cpp)
  set(targets "")
  foreach(variant IN LISTS variants)
    add_library(_cpu_${variant} MODULE ${drivers})
    set_target_properties(_cpu_${variant} PROPERTIES PREFIX "")
    target_link_libraries(_cpu_${variant} PRIVATE torch)
    target_compile_options(_cpu_${variant} PRIVATE ${flags_${variant}})
    # A tenth of the library is names of what is not exported; a profiler wants them.
    target_link_options(_cpu_${variant} PRIVATE $<$<CONFIG:Release>:-s>)
    list(APPEND targets _cpu_${variant})
  endforeach()
  string(REPLACE ";" " " listed "${variants}")
  set(DIFFREG_CPU_TARGETS ${targets} PARENT_SCOPE)
  set(DIFFREG_CPU_VARIANTS "${listed}" PARENT_SCOPE)
endfunction()
