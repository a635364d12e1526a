// Rows of a quantised matrix, rounded to bf16: some that follow one another, for cuBLAS to multiply by, or some that are named,
// as ../embedding.rs has them.
#include "blocks.cuh"

struct DequantiseArgs {
    Blocks weight;        // [weight_rows, inputs]
    const uint32_t *rows; // [num_rows], or null: the row's own place among those asked for
    void *out;            // [num_rows, inputs] bf16, at a multiple of 16 bytes
    int64_t shift;        // what is added to such a number for a row of the weight; out of range, nothing is written for it
    uint64_t weight_rows;
    int32_t inputs;       // a multiple of 32, for q4_k and q6_k of 256
    int32_t padding;
};

// Grid (num_rows).
template <typename Format> __device__ __forceinline__ void dequantise(const DequantiseArgs &args) {
    int64_t row = (int64_t)(args.rows == nullptr ? blockIdx.x : args.rows[blockIdx.x]) + args.shift;
    if ((uint64_t)row >= args.weight_rows) return;
    Blocks weight = blocks_from<Format>(args.weight, (size_t)row * (args.inputs / 32));
    bf16 *out = (bf16 *)args.out + (size_t)blockIdx.x * args.inputs;
    for (int piece = threadIdx.x; piece < args.inputs / PIECE; piece += blockDim.x) {
        store_piece(out + piece * PIECE, dequantised<Format>(weight, piece));
    }
}

extern "C" __global__ void dequantise_q8_0(const DequantiseArgs args) { dequantise<Q8_0>(args); }
extern "C" __global__ void dequantise_q4_0(const DequantiseArgs args) { dequantise<Q4_0>(args); }
extern "C" __global__ void dequantise_q4_k(const DequantiseArgs args) { dequantise<Q4_K>(args); }
extern "C" __global__ void dequantise_q6_k(const DequantiseArgs args) { dequantise<Q6_K>(args); }
