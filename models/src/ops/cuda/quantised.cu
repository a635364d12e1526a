// x W^T + bias for up to 8 rows x, as ../linear.rs has it, where W is quantised: the weights are read once for all
// rows, and never stored as anything else. Each warp sums one output of every row. A row's sums are taken in the same
// order however many rows there are: a lane adds its pieces in ascending order, by one fused multiply-add each element,
// and then lanes are added.
#include "blocks.cuh"

struct QuantisedArgs {
    Blocks weight;     // [outputs, inputs]
    const void *x;     // [rows, inputs], at a multiple of 16 bytes
    const float *bias; // [outputs], or null
    void *y;           // [rows, stride], of which the first `outputs` columns are written
    int32_t inputs;    // a multiple of 32, for q4_k and q6_k of 256
    int32_t outputs;
    int32_t rows;      // at least 1
    int32_t stride;
};

constexpr int QUANTISED_WARPS = 8; // of a block

// Grid (outputs / QUANTISED_WARPS). Rows that are not there, up to ROWS, are the last one again.
template <typename Format, typename T, int ROWS> __device__ __forceinline__ void quantised(const QuantisedArgs &args) {
    int output = blockIdx.x * QUANTISED_WARPS + warp_index();
    if (output >= args.outputs) return;
    Blocks weight = blocks_from<Format>(args.weight, (size_t)output * (args.inputs / 32));
    const T *x[ROWS];
    float sums[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        x[row] = (const T *)args.x + (size_t)min(row, args.rows - 1) * args.inputs;
        sums[row] = 0.0f;
    }
#pragma unroll 4
    for (int piece = lane_index(); piece < args.inputs / PIECE; piece += WARP) {
        Piece weights = dequantised<Format>(weight, piece);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            Piece inputs = load_piece(x[row] + piece * PIECE);
            for (int i = 0; i < PIECE; i++) sums[row] = fmaf(inputs.values[i], weights.values[i], sums[row]);
        }
    }
    float bias = args.bias == nullptr ? 0.0f : args.bias[output];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        float sum = warp_sum(sums[row]);
        if (lane_index() != row || row >= args.rows) continue;
        ((T *)args.y)[(size_t)row * args.stride + output] = rounded<T>(args.bias == nullptr ? sum : sum + bias);
    }
}

#define QUANTISED(NAME, FORMAT, ELEMENT, T, ROWS)                                                                      \
    extern "C" __global__ void __launch_bounds__(QUANTISED_WARPS *WARP)                                                \
        quantised_##NAME##_##ELEMENT##_r##ROWS(const QuantisedArgs args) {                                             \
        quantised<FORMAT, T, ROWS>(args);                                                                              \
    }
#define QUANTISED_ROWS(NAME, FORMAT, ELEMENT, T)                                                                       \
    QUANTISED(NAME, FORMAT, ELEMENT, T, 1)                                                                             \
    QUANTISED(NAME, FORMAT, ELEMENT, T, 2)                                                                             \
    QUANTISED(NAME, FORMAT, ELEMENT, T, 4)                                                                             \
    QUANTISED(NAME, FORMAT, ELEMENT, T, 8)
#define QUANTISED_FORMAT(NAME, FORMAT)                                                                                 \
    QUANTISED_ROWS(NAME, FORMAT, f32, float)                                                                           \
    QUANTISED_ROWS(NAME, FORMAT, bf16, bf16)

QUANTISED_FORMAT(q8_0, Q8_0)
QUANTISED_FORMAT(q4_0, Q4_0)
QUANTISED_FORMAT(q4_k, Q4_K)
QUANTISED_FORMAT(q6_k, Q6_K)
