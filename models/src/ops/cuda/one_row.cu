// x W^T + bias for one row x, as ../linear.rs has it, where all are bf16: one read of the weights, and nothing for matrix units
// to share. Each warp sums one output, 16 bytes of weights a lane and step; x stays in its multiprocessor's cache.
#include "pieces.cuh"

struct OneRowArgs {
    const void *x;      // [inputs] bf16, at a multiple of 16 bytes
    const void *weight; // [outputs, inputs] bf16, at a multiple of 16 bytes
    const float *bias;  // [outputs], or null
    void *y;            // [outputs] bf16
    int32_t inputs;     // a multiple of PIECE
    int32_t outputs;
};

constexpr int ONE_ROW_WARPS = 8; // of a block

// Grid (outputs / ONE_ROW_WARPS).
extern "C" __global__ void __launch_bounds__(ONE_ROW_WARPS *WARP) one_row_bf16(const OneRowArgs args) {
    int output = blockIdx.x * ONE_ROW_WARPS + warp_index();
    if (output >= args.outputs) return;
    const bf16 *x = (const bf16 *)args.x;
    const bf16 *weight = (const bf16 *)args.weight + (size_t)output * args.inputs;
    float sum = 0.0f;
#pragma unroll 4
    for (int k = lane_index() * PIECE; k < args.inputs; k += WARP * PIECE) {
        Piece weights = load_piece(weight + k), inputs = load_piece(x + k);
        for (int i = 0; i < PIECE; i++) sum = fmaf(inputs.values[i], weights.values[i], sum);
    }
    sum = warp_sum(sum);
    if (lane_index() != 0) return;
    ((bf16 *)args.y)[output] = rounded<bf16>(args.bias == nullptr ? sum : sum + args.bias[output]);
}
