// Adds a vector to every row of a matrix, in place, rounding once. A thread takes one element.
#include "common.cuh"

struct BiasArgs {
    void *x;           // [num_rows, width]
    const float *bias; // [width]
    uint64_t width;
    uint64_t num_elements;
};

template <typename T> __device__ __forceinline__ void add_bias(const BiasArgs &args) {
    uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.num_elements) return;
    T &x = ((T *)args.x)[index];
    x = rounded<T>(widened(x) + args.bias[index % args.width]);
}

extern "C" __global__ void add_bias_f32(const BiasArgs args) { add_bias<float>(args); }
extern "C" __global__ void add_bias_bf16(const BiasArgs args) { add_bias<bf16>(args); }
