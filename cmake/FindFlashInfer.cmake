# FlashInfer's kernel headers, from their folder. Input: NIBBLE_FLASHINFER (default
# $NIBBLE_PREFIX/flashinfer). Makes the target nibble::flashinfer.
set(NIBBLE_FLASHINFER "" CACHE PATH "FlashInfer's folder: include/ and libcudacxx/")
if(NOT NIBBLE_FLASHINFER)
  if(DEFINED ENV{NIBBLE_PREFIX})
    set(NIBBLE_FLASHINFER $ENV{NIBBLE_PREFIX}/flashinfer)
  else()
    set(NIBBLE_FLASHINFER /opt/nibble/flashinfer)
  endif()
endif()
find_path(FLASHINFER_INCLUDE flashinfer/attention/prefill.cuh
  HINTS ${NIBBLE_FLASHINFER}/include NO_DEFAULT_PATH)
find_path(FLASHINFER_LIBCUDACXX cuda/cmath
  HINTS ${NIBBLE_FLASHINFER}/libcudacxx NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(FlashInfer
  REQUIRED_VARS FLASHINFER_INCLUDE FLASHINFER_LIBCUDACXX
  REASON_FAILURE_MESSAGE "run docker/install-deps --with-cuda")
if(FlashInfer_FOUND AND NOT TARGET nibble::flashinfer)
  add_library(nibble::flashinfer INTERFACE IMPORTED)
  # Its libcu++ is newer than the toolkit's and found before it.
  target_include_directories(nibble::flashinfer SYSTEM INTERFACE
    ${FLASHINFER_LIBCUDACXX} ${FLASHINFER_INCLUDE})
endif()
