// Root-mean-square and layer normalisation, as ../norm.rs and ../layer_norm.rs have them, with or without the residual sum
// before it. A block is one row. In bf16 the sum is rounded when it is stored, and it is the stored sum that is
// normalised: so the stream means the same to the layer that reads it next.
//
// Rows of whole pieces are read once and stay in registers. Others are read again for each sum.
#include "pieces.cuh"

struct NormArgs {
    const void *x;        // [num_rows, width]
    const void *residual; // the same, or null: x is normalised as it is
    void *sum;            // where the sum goes, if there is a residual
    void *normed;         // [num_rows, width]
    const float *weight;  // [width]
    const float *bias;    // [width] for a layer norm; null: root mean square
    int32_t width;
    float eps;
};

constexpr int NORM_WARPS = 16;        // of a block, at most
constexpr int PIECES_OF_A_THREAD = 4; // at most

template <typename T> __device__ __forceinline__ T *row_of(const NormArgs &args, const void *rows) {
    return (T *)rows + (size_t)blockIdx.x * args.width;
}

// Where the thread's piece `index` begins in its row, which may be behind the row's end.
__device__ __forceinline__ int piece_start(int index) { return (index * (int)blockDim.x + (int)threadIdx.x) * PIECE; }

template <typename T> __device__ __forceinline__ void norm_in_registers(const NormArgs &args, float *partial) {
    Piece own[PIECES_OF_A_THREAD];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int index = 0; index < PIECES_OF_A_THREAD; index++) {
        int start = piece_start(index);
        if (start >= args.width) break;
        own[index] = load_piece(row_of<const T>(args, args.x) + start);
        if (args.residual != nullptr) {
            Piece residual = load_piece(row_of<const T>(args, args.residual) + start);
            for (int i = 0; i < PIECE; i++) {
                own[index].values[i] = widened(rounded<T>(residual.values[i] + own[index].values[i]));
            }
            store_piece(row_of<T>(args, args.sum) + start, own[index]);
        }
        for (int i = 0; i < PIECE; i++) sum += own[index].values[i];
    }
    float mean = args.bias == nullptr ? 0.0f : block_sum(sum, partial) / args.width;
#pragma unroll
    for (int index = 0; index < PIECES_OF_A_THREAD; index++) {
        if (piece_start(index) >= args.width) break;
        for (int i = 0; i < PIECE; i++) {
            float centred = own[index].values[i] - mean;
            squares = fmaf(centred, centred, squares);
        }
    }
    float factor = 1.0f / sqrtf(block_sum(squares, partial) / args.width + args.eps);
#pragma unroll
    for (int index = 0; index < PIECES_OF_A_THREAD; index++) {
        int start = piece_start(index);
        if (start >= args.width) break;
        Piece weight = load_piece(args.weight + start);
        for (int i = 0; i < PIECE; i++) own[index].values[i] = (own[index].values[i] - mean) * factor * weight.values[i];
        if (args.bias != nullptr) {
            Piece bias = load_piece(args.bias + start);
            for (int i = 0; i < PIECE; i++) own[index].values[i] += bias.values[i];
        }
        store_piece(row_of<T>(args, args.normed) + start, own[index]);
    }
}

// A thread reads back only what it has written itself.
template <typename T> __device__ __forceinline__ void norm_of_any_width(const NormArgs &args, float *partial) {
    const T *x = row_of<const T>(args, args.x);
    if (args.residual != nullptr) {
        const T *residual = row_of<const T>(args, args.residual);
        T *sum = row_of<T>(args, args.sum);
        for (int i = threadIdx.x; i < args.width; i += blockDim.x) sum[i] = rounded<T>(widened(residual[i]) + widened(x[i]));
        x = sum;
    }
    float mean = 0.0f;
    if (args.bias != nullptr) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < args.width; i += blockDim.x) sum += widened(x[i]);
        mean = block_sum(sum, partial) / args.width;
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < args.width; i += blockDim.x) {
        float centred = widened(x[i]) - mean;
        squares = fmaf(centred, centred, squares);
    }
    float factor = 1.0f / sqrtf(block_sum(squares, partial) / args.width + args.eps);
    T *normed = row_of<T>(args, args.normed);
    for (int i = threadIdx.x; i < args.width; i += blockDim.x) {
        float value = (widened(x[i]) - mean) * factor * args.weight[i];
        normed[i] = rounded<T>(args.bias == nullptr ? value : value + args.bias[i]);
    }
}

// Grid (num_rows), at most NORM_WARPS warps.
template <typename T> __device__ __forceinline__ void norm(const NormArgs &args) {
    __shared__ float partial[NORM_WARPS];
    bool fits = args.width % PIECE == 0 && args.width <= PIECES_OF_A_THREAD * PIECE * (int)blockDim.x;
    if (fits) norm_in_registers<T>(args, partial);
    else norm_of_any_width<T>(args, partial);
}

extern "C" __global__ void norm_f32(const NormArgs args) { norm<float>(args); }
extern "C" __global__ void norm_bf16(const NormArgs args) { norm<bf16>(args); }
