// As much of CUDA as the kernels use, for the CPU, so that their text runs where no GPU is.
//
// The threads of a block are fibers of one CPU thread. A fiber runs until a barrier or a shuffle and then gives way; when all
// whom it waits for have arrived, it goes on. A warp runs as far as it comes without the others. Which warp, and which lane
// of it, runs first is an argument: a kernel that lacks a barrier reads what is not written yet, or is written again already, in
// one order or the other, so its results differ between the two.
//
// What this does not show: races between warps that both orders hide, the GPU's memory model, how its units round (exp, tanh,
// division), and anything about time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after the other, all on the thread that launched them.
#define __shared__ static thread_local

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
};

struct uint2 {
    uint32_t x, y;
};

struct float2 {
    float x, y;
};

struct float4 {
    float x, y, z, w;
};

struct uint4 {
    uint32_t x, y, z, w;
};

static inline float2 make_float2(float x, float y) { return float2{x, y}; }

static inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Rounded by themselves: nothing is contracted here (see the compiler's options).
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fsub_rn(float x, float y) { return x - y; }

// Four bytes of the eight of `low` and `high`, each by a nibble of `selector`.
static inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t chosen = 0;
    for (int i = 0; i < 4; i++) chosen |= (uint32_t)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return chosen;
}

static inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline long long __double_as_longlong(double value) {
    long long bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// One fiber runs at a time.
static inline int atomicAdd(int *sum, int more) {
    int before = *sum;
    *sum += more;
    return before;
}

// Of the fiber that runs.
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// Waits until every fiber of the block, or of the warp, that has not ended is there.
void __syncthreads();
void __syncwarp();

// Exchanges 32 bits with the fiber of the warp whose lane differs by `mask`. All 32 must take part.
uint32_t host_shuffle(uint32_t value, int mask);

static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return __uint_as_float(host_shuffle(bits, mask));
}

static inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) { return host_shuffle(value, mask); }
