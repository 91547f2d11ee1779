# LibTorch from its folder, without TorchConfig.cmake, which wants a CUDA toolkit.
# Input: NIBBLE_LIBTORCH (default $NIBBLE_PREFIX/libtorch); with NIBBLE_CUDA also NIBBLE_LIBTORCH_CUDA
# (default $NIBBLE_LIBTORCH-cuda), the CUDA libraries to link with. Makes the target nibble::torch.
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
set(nibble_torch_needs NIBBLE_TORCH_INCLUDE NIBBLE_TORCH_CPU NIBBLE_C10)
if(NIBBLE_CUDA)
  set(NIBBLE_LIBTORCH_CUDA ${NIBBLE_LIBTORCH}-cuda CACHE PATH "LibTorch's CUDA libraries: lib/")
  find_library(NIBBLE_TORCH_CUDA torch_cuda HINTS ${NIBBLE_LIBTORCH_CUDA}/lib NO_DEFAULT_PATH)
  find_library(NIBBLE_C10_CUDA c10_cuda HINTS ${NIBBLE_LIBTORCH_CUDA}/lib NO_DEFAULT_PATH)
  list(APPEND nibble_torch_needs NIBBLE_TORCH_CUDA NIBBLE_C10_CUDA)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NibbleTorch
  REQUIRED_VARS ${nibble_torch_needs}
  REASON_FAILURE_MESSAGE "run docker/install-deps, for NIBBLE_CUDA --with-cuda")
if(NibbleTorch_FOUND AND NOT TARGET nibble::torch)
  add_library(nibble::torch INTERFACE IMPORTED)
  target_include_directories(nibble::torch SYSTEM INTERFACE ${NIBBLE_TORCH_INCLUDE})
  target_link_libraries(nibble::torch INTERFACE ${NIBBLE_TORCH_CPU} ${NIBBLE_C10})
  # DT_RPATH, unlike DT_RUNPATH, also serves the needs of the carried libraries themselves.
  target_link_options(nibble::torch INTERFACE -Wl,--disable-new-dtags)
  if(NIBBLE_CUDA)
    # Found by LibTorch when it is loaded, not by a symbol. What its CUDA libraries need of NVIDIA's
    # is there where a GPU is.
    target_link_libraries(nibble::torch INTERFACE
      -Wl,--push-state,--no-as-needed ${NIBBLE_TORCH_CUDA} ${NIBBLE_C10_CUDA} -Wl,--pop-state)
    target_link_options(nibble::torch INTERFACE -Wl,--allow-shlib-undefined)
  endif()
endif()
