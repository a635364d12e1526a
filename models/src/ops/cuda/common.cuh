// What the kernels share. Plain CUDA C++, so that the same text compiles for other makers' GPUs and, under host/runtime.h, for
// the CPU; only tensor_core.cuh has inline assembly.
//
// Activations are f32 or bf16 and say so by a template argument; sums are f32 everywhere. Each kernel takes one struct by
// value, which its Rust file mirrors field by field. All indexes into tensors are 64 bits wide.
#pragma once

#include <cuda_bf16.h>
#include <cstdint>
#include <math.h>

typedef __nv_bfloat16 bf16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(bf16 x) { return __bfloat162float(x); }

// To the nearest, ties to even.
template <typename T> __device__ __forceinline__ T rounded(float x);
template <> __device__ __forceinline__ float rounded<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 rounded<bf16>(float x) { return __float2bfloat16(x); }

__device__ __forceinline__ int lane_index() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / WARP; }

// Both are symmetrical, so every lane ends with the same bits.
__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// Of all threads of the block; `partial` has an element for each warp. All threads get the same bits.
__device__ __forceinline__ float block_sum(float x, float *partial) {
    x = warp_sum(x);
    __syncthreads(); // whoever still reads the sums of a call before
    if (lane_index() == 0) partial[warp_index()] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) sum += partial[warp];
    return sum;
}
