// Cosines and sines of a step's positions, as ../rope.rs has them: the angle is an f32 product, and both are multiplied by the
// scaling. A thread takes one angle.
#include "common.cuh"

struct AnglesArgs {
    const uint32_t *positions;   // [num_tokens]
    const float *inv_freq;       // [half]
    float *cosines;              // [num_tokens, half]
    float *sines;
    int32_t num_angles;          // num_tokens * half
    int32_t half;
    float scaling;
};

constexpr int ANGLES_THREADS = 128;

extern "C" __global__ void rotary_angles(const AnglesArgs args) {
    int index = blockIdx.x * ANGLES_THREADS + threadIdx.x;
    if (index >= args.num_angles) return;
    float angle = (float)args.positions[index / args.half] * args.inv_freq[index % args.half];
    args.cosines[index] = cosf(angle) * args.scaling;
    args.sines[index] = sinf(angle) * args.scaling;
}
