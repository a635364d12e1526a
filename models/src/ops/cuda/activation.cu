// Activations, alone and as the gate of a gated network, as ../activation.rs and ../gate_mul.rs have them: computed in f32,
// rounded once. A thread takes a piece of a row of the output where rows are of whole pieces, else an element.
#include "pieces.cuh"

struct ActivationArgs {
    const void *x;  // [num_rows, width], or [num_rows, 2 * width] where gated: the gate, then what it gates
    void *out;      // [num_rows, width]
    uint64_t width; // of a row of out
    int32_t kind;   // see `activated`
    int32_t gated;
    uint32_t blocks_of_a_row;
    float alpha_positive; // of xIELU, as the next three
    float alpha_negative;
    float beta;
    float eps;
};

// The numbers are those of the enum in activation.rs.
__device__ __forceinline__ float activated(const ActivationArgs &args, float x) {
    switch (args.kind) {
    case 0: { // relu2
        float above = fmaxf(x, 0.0f);
        return above * above;
    }
    case 1: // GELU by its tangent
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * x * (1.0f + 0.044715f * x * x)));
    case 2: // GELU by the error function
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case 3:
        return fmaxf(x, 0.0f);
    case 4: // SiLU
        return x / (1.0f + expf(-x));
    case 5:
        return tanhf(x);
    default: { // xIELU
        float linear = args.beta * x;
        return x > 0.0f ? args.alpha_positive * x * x + linear
                        : args.alpha_negative * (expf(fminf(x, args.eps)) - 1.0f - x) + linear;
    }
    }
}

template <typename T> __device__ __forceinline__ void activate_piece(const ActivationArgs &args, size_t row, size_t column) {
    size_t width = args.gated ? 2 * args.width : args.width;
    const T *x = (const T *)args.x + row * width + column;
    Piece piece = load_piece(x);
    for (int i = 0; i < PIECE; i++) piece.values[i] = activated(args, piece.values[i]);
    if (args.gated) {
        Piece gated = load_piece(x + args.width);
        for (int i = 0; i < PIECE; i++) piece.values[i] *= gated.values[i];
    }
    store_piece((T *)args.out + row * args.width + column, piece);
}

template <typename T> __device__ __forceinline__ void activate_element(const ActivationArgs &args, size_t row, size_t column) {
    size_t width = args.gated ? 2 * args.width : args.width;
    const T *x = (const T *)args.x + row * width + column;
    float value = activated(args, widened(x[0]));
    if (args.gated) value *= widened(x[args.width]);
    ((T *)args.out)[row * args.width + column] = rounded<T>(value);
}

// Grid (num_rows * blocks_of_a_row): a row is so many blocks that the division is one for the whole block.
template <typename T> __device__ __forceinline__ void activate(const ActivationArgs &args) {
    size_t row = blockIdx.x / args.blocks_of_a_row;
    size_t index = (size_t)(blockIdx.x % args.blocks_of_a_row) * blockDim.x + threadIdx.x;
    bool in_pieces = args.width % PIECE == 0;
    size_t column = in_pieces ? index * PIECE : index;
    if (column >= args.width) return;
    if (in_pieces) activate_piece<T>(args, row, column);
    else activate_element<T>(args, row, column);
}

extern "C" __global__ void activate_f32(const ActivationArgs args) { activate<float>(args); }
extern "C" __global__ void activate_bf16(const ActivationArgs args) { activate<bf16>(args); }
