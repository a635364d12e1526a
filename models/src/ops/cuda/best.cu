// The most likely tokens of each row of logits and their log-probabilities: value - ln(sum(exp(values))). The first of them is
// the argmax. Of equal logits the token with the smaller id comes first. What is not a number is never among the best, and a
// row with such an element, or without a finite one, has log-probabilities that are not numbers.
#include "common.cuh"

struct BestArgs {
    const void *logits;  // [num_rows, vocab_size]
    uint32_t *tokens;    // [num_rows, count]
    float *logprobs;     // [num_rows, count]
    int32_t vocab_size;
    int32_t count;       // at most vocab_size
};

constexpr int BEST_WARPS = 8;

struct Candidate {
    float value;
    uint32_t token;
};

// Whether `a` comes before `b`.
__device__ __forceinline__ bool before(const Candidate &a, const Candidate &b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
}

__device__ __forceinline__ Candidate nobody() { return Candidate{-INFINITY, 0xffffffffu}; }

// Of all threads of the block, which all get the same.
__device__ Candidate block_best(Candidate own, Candidate *of_warps) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Candidate other;
        other.value = __shfl_xor_sync(ALL_LANES, own.value, distance);
        other.token = __shfl_xor_sync(ALL_LANES, own.token, distance);
        if (before(other, own)) own = other;
    }
    __syncthreads(); // whoever still reads the candidates of a call before
    if (lane_index() == 0) of_warps[warp_index()] = own;
    __syncthreads();
    Candidate best = of_warps[0];
    for (int warp = 1; warp < BEST_WARPS; warp++) {
        if (before(of_warps[warp], best)) best = of_warps[warp];
    }
    return best;
}

// Grid (num_rows), BEST_WARPS warps. Each further token is the first after the one before in the order of `before`.
template <typename T> __device__ __forceinline__ void best(const BestArgs &args) {
    __shared__ float partial[BEST_WARPS];
    __shared__ Candidate of_warps[BEST_WARPS];
    const T *row = (const T *)args.logits + (size_t)blockIdx.x * args.vocab_size;
    float maximum = 0.0f, log_sum = 0.0f;
    Candidate last = {INFINITY, 0};
    for (int rank = 0; rank < args.count; rank++) {
        Candidate own = nobody();
        for (int token = threadIdx.x; token < args.vocab_size; token += blockDim.x) {
            Candidate candidate = {widened(row[token]), (uint32_t)token};
            bool is_left = rank == 0 || before(last, candidate);
            if (is_left && before(candidate, own)) own = candidate;
        }
        last = block_best(own, of_warps);
        if (rank == 0) {
            maximum = last.value;
            float sum = 0.0f;
            for (int token = threadIdx.x; token < args.vocab_size; token += blockDim.x) {
                sum += expf(widened(row[token]) - maximum);
            }
            log_sum = logf(block_sum(sum, partial));
        }
        if (threadIdx.x == 0) {
            args.tokens[(size_t)blockIdx.x * args.count + rank] = last.token;
            args.logprobs[(size_t)blockIdx.x * args.count + rank] = last.value - maximum - log_sum;
        }
    }
}

extern "C" __global__ void best_f32(const BestArgs args) { best<float>(args); }
extern "C" __global__ void best_bf16(const BestArgs args) { best<bf16>(args); }
