// Root-mean-square and layer normalisation, as ../norm.rs and ../layer_norm.rs have them, with or without the residual sum
// before it. A block is one row. In bf16 the sum is rounded when it is stored, and it is the stored sum that is
// normalised: so the stream means the same to the layer that reads it next.
#include "common.cuh"

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

constexpr int NORM_WARPS = 8;

// Grid (num_rows), NORM_WARPS warps. A thread reads back only what it has written itself.
template <typename T> __device__ __forceinline__ void norm(const NormArgs &args) {
    __shared__ float partial[NORM_WARPS];
    size_t start = (size_t)blockIdx.x * args.width;
    const T *x = (const T *)args.x + start;
    if (args.residual != nullptr) {
        const T *residual = (const T *)args.residual + start;
        T *sum = (T *)args.sum + start;
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
    T *normed = (T *)args.normed + start;
    for (int i = threadIdx.x; i < args.width; i += blockDim.x) {
        float value = (widened(x[i]) - mean) * factor * args.weight[i];
        normed[i] = rounded<T>(args.bias == nullptr ? value : value + args.bias[i]);
    }
}

extern "C" __global__ void norm_f32(const NormArgs args) { norm<float>(args); }
extern "C" __global__ void norm_bf16(const NormArgs args) { norm<bf16>(args); }
