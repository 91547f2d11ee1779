# LibTorch from its folder, without TorchConfig.cmake, which wants a CUDA toolkit.
# Input: NIBBLE_LIBTORCH (default $NIBBLE_PREFIX/libtorch). Makes the target nibble::torch.
set(NIBBLE_LIBTORCH "" CACHE PATH "LibTorch's folder: include/ and lib/")
if(NOT NIBBLE_LIBTORCH)
  if(DEFINED ENV{NIBBLE_PREFIX})
    set(NIBBLE_LIBTORCH $ENV{NIBBLE_PREFIX}/libtorch)
  else()
    set(NIBBLE_LIBTORCH /opt/nibble/libtorch)
  endif()
endif()
find_path(NIBBLE_TORCH_INCLUDE ATen/ATen.h HINTS ${NIBBLE_LIBTORCH}/include NO_DEFAULT_PATH)
find_library(NIBBLE_TORCH_CPU torch_cpu HINTS ${NIBBLE_LIBTORCH}/lib NO_DEFAULT_PATH)
find_library(NIBBLE_C10 c10 HINTS ${NIBBLE_LIBTORCH}/lib NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NibbleTorch
  REQUIRED_VARS NIBBLE_TORCH_INCLUDE NIBBLE_TORCH_CPU NIBBLE_C10
  REASON_FAILURE_MESSAGE "run docker/install-deps")
if(NibbleTorch_FOUND AND NOT TARGET nibble::torch)
  add_library(nibble::torch INTERFACE IMPORTED)
  target_include_directories(nibble::torch SYSTEM INTERFACE ${NIBBLE_TORCH_INCLUDE})
  target_link_libraries(nibble::torch INTERFACE ${NIBBLE_TORCH_CPU} ${NIBBLE_C10})
  # DT_RPATH, unlike DT_RUNPATH, also serves the needs of the carried libraries themselves.
  target_link_options(nibble::torch INTERFACE -Wl,--disable-new-dtags)
endif()
