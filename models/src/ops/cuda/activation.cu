// Activations, alone and as the gate of a gated network, as ../activation.rs and ../gate_mul.rs have them: computed in f32,
// rounded once. A thread takes one element of the output.
#include "common.cuh"

struct ActivationArgs {
    const void *x;  // [num_rows, width], or [num_rows, 2 * width] where gated: the gate, then what it gates
    void *out;      // [num_rows, width]
    uint64_t width;
    uint64_t num_elements; // of out
    int32_t kind;   // see `activated`
    int32_t gated;
    float alpha_positive; // of xIELU, as the next three
    float alpha_negative;
    float beta;
    float eps;
};

constexpr int ACTIVATION_THREADS = 256;

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

template <typename T> __device__ __forceinline__ void activate(const ActivationArgs &args) {
    uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.num_elements) return;
    const T *x = (const T *)args.x;
    float value;
    if (args.gated) {
        uint64_t row = index / args.width;
        uint64_t at = index + row * args.width;
        value = activated(args, widened(x[at])) * widened(x[at + args.width]);
    } else {
        value = activated(args, widened(x[index]));
    }
    ((T *)args.out)[index] = rounded<T>(value);
}

extern "C" __global__ void activate_f32(const ActivationArgs args) { activate<float>(args); }
extern "C" __global__ void activate_bf16(const ActivationArgs args) { activate<bf16>(args); }
