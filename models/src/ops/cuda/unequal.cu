// Whether two tensors of one size differ in a bit.
#include "common.cuh"

struct UnequalArgs {
    const void *one;
    const void *other;
    uint32_t *differ; // set to 1 if they do, and else left alone
    uint64_t num_elements;
};

// A thread takes one element. Whoever finds a difference writes the same.
template <typename Bits> __device__ __forceinline__ void unequal(const UnequalArgs &args) {
    uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.num_elements) return;
    if (((const Bits *)args.one)[index] != ((const Bits *)args.other)[index]) *args.differ = 1;
}

extern "C" __global__ void unequal_f32(const UnequalArgs args) { unequal<uint32_t>(args); }
extern "C" __global__ void unequal_bf16(const UnequalArgs args) { unequal<uint16_t>(args); }
