// Some rows of a matrix, as ../gather_rows.rs and ../embedding.rs have them. Elements are moved, not computed with.
#include "common.cuh"

struct GatherArgs {
    const void *x;        // [m, width]
    const uint32_t *rows; // [num_rows], each below m
    void *out;            // [num_rows, width]
    uint64_t width;
};

// Grid (num_rows).
template <typename T> __device__ __forceinline__ void gather(const GatherArgs &args) {
    const T *from = (const T *)args.x + args.rows[blockIdx.x] * args.width;
    T *to = (T *)args.out + blockIdx.x * args.width;
    for (uint64_t i = threadIdx.x; i < args.width; i += blockDim.x) to[i] = from[i];
}

extern "C" __global__ void gather_f32(const GatherArgs args) { gather<uint32_t>(args); }
extern "C" __global__ void gather_bf16(const GatherArgs args) { gather<uint16_t>(args); }
