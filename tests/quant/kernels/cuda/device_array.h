// A typed array on the device for tests: poisoned where it is not filled, so that an element nobody
// writes shows.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace nibble {

inline void ExpectCuda(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

template <class T>
class DeviceArray {
 public:
  // Bytes 0xff: a NaN as bf16 or f32, E4M3's NaN, -1 as an integer.
  explicit DeviceArray(size_t count) : count_(count) {
    ExpectCuda(cudaMalloc(&data_, Bytes()));
    ExpectCuda(cudaMemset(data_, 0xff, Bytes()));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    ExpectCuda(cudaMemcpy(data_, values.data(), Bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return data_; }
  size_t size() const { return count_; }
  // Waits for the device.
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    ExpectCuda(cudaDeviceSynchronize());
    ExpectCuda(cudaMemcpy(values.data(), data_, Bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t Bytes() const { return count_ * sizeof(T); }
  size_t count_;
  T* data_ = nullptr;
};

}  // namespace nibble
