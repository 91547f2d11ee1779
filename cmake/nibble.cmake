# One library, test or program per call; every folder lists only its own files.
#
#   nibble_add_library(NAME [TORCH] SRCS ... DEPS ...)
#   nibble_add_test(NAME [TORCH] SRCS ... DEPS ... [ENV NAME=VALUE ...])
#   nibble_add_executable(NAME [TORCH] SRCS ... DEPS ...)
#
# TORCH: its sources include LibTorch; they share one precompiled ATen header.
# Tests run beside other work: their OpenMP threads wait for each other without spinning.
include_guard()

add_library(nibble_options INTERFACE)
target_compile_features(nibble_options INTERFACE cxx_std_20)
target_compile_options(nibble_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wno-missing-field-initializers>
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;--Werror=all-warnings;-Xcompiler=-Wall,-Wextra>)
target_include_directories(nibble_options INTERFACE ${PROJECT_SOURCE_DIR})
if(NIBBLE_SANITIZE)
  # Undefined behaviour fails a test only if it does not recover.
  target_compile_options(nibble_options INTERFACE
    -fsanitize=${NIBBLE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()

if(NIBBLE_TORCH)
  find_package(NibbleTorch REQUIRED)
  file(WRITE ${CMAKE_BINARY_DIR}/torch_pch.cc "")
  add_library(nibble_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cc)
  target_link_libraries(nibble_torch_pch PRIVATE nibble_options nibble::torch)
  target_precompile_headers(nibble_torch_pch PRIVATE <ATen/ATen.h>)
endif()

function(nibble_configure name torch srcs deps)
  target_link_libraries(${name} PRIVATE nibble_options)
  target_link_libraries(${name} PUBLIC ${deps})
  if(torch)
    # PRIVATE: LibTorch carries headers (fmt) that must not shadow the system's in other targets.
    target_link_libraries(${name} PRIVATE nibble::torch)
    target_precompile_headers(${name} REUSE_FROM nibble_torch_pch)
  endif()
endfunction()

function(nibble_add_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "" "SRCS;DEPS")
  add_library(${name} STATIC ${arg_SRCS})
  nibble_configure(${name} "${arg_TORCH}" "${arg_SRCS}" "${arg_DEPS}")
endfunction()

function(nibble_add_executable name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "" "SRCS;DEPS")
  add_executable(${name} ${arg_SRCS})
  nibble_configure(${name} "${arg_TORCH}" "${arg_SRCS}" "${arg_DEPS}")
endfunction()

function(nibble_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "" "SRCS;DEPS;ENV")
  add_executable(${name} ${arg_SRCS})
  nibble_configure(${name} "${arg_TORCH}" "${arg_SRCS}" "${arg_DEPS};GTest::gmock_main")
  target_compile_definitions(${name} PRIVATE
    NIBBLE_FIXTURES="${PROJECT_SOURCE_DIR}/tests/fixtures")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300
    ENVIRONMENT "OMP_WAIT_POLICY=PASSIVE;${arg_ENV}")
endfunction()
