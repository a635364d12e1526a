// What stands between the merged product of queries, keys and values and attention, in one launch, as ../qkv.rs has it:
// the product's bias, norms of queries and keys, rotary positions, and the keys and values written to the paged cache.
//
// A block is one token, or a few heads of it where heads are normed apart; its warps take the heads in turn. An element's
// f32 value is rounded once, when it is stored, to the activations' dtype (queries) or to the cache's (keys and values).
#include "common.cuh"

struct QkvArgs {
    const void *qkv;       // [num_tokens, (num_heads + 2 num_kv_heads) * head_dim]
    void *q;               // [num_tokens, num_heads, head_dim], dtype of qkv
    void *k;               // one layer of the cache, see attention.cu
    void *v;
    const uint32_t *slots; // [num_tokens]; NOWHERE: the token's keys and values are not stored
    const float *bias;     // as one row of qkv, or null
    const float *q_weight; // [head_dim], or [num_heads * head_dim] where `whole_token`; null: no norms
    const float *k_weight; // [head_dim], or [num_kv_heads * head_dim]
    const float *q_bias;   // of a layer norm; null: root mean square
    const float *k_bias;
    const float *cosines;  // [num_tokens, half], or null: nothing turns
    const float *sines;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t padded_head_dim;
    int32_t block_size;
    int32_t half;          // elements i and i + half of a head turn together; the others pass
    int32_t whole_token;   // the queries of a token are normed together, and so are its keys
    float q_eps;
    float k_eps;
};

constexpr int KV_TILE = 16;
constexpr int QKV_WARPS = 4;
constexpr int MOST_HEAD_DIM = 256;
constexpr uint32_t NOWHERE = 0xffffffffu;

// Mean (0 for a root mean square) and factor of a norm.
struct Moments {
    float mean;
    float factor;
};

template <typename T> __device__ __forceinline__ float qkv_element(const QkvArgs &args, size_t token, int column) {
    int width = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
    float x = widened(((const T *)args.qkv)[token * width + column]);
    return args.bias == nullptr ? x : x + args.bias[column];
}

// Of the columns `[first, first + width)` of a token, by the whole block.
template <typename T>
__device__ Moments moments_of_token(const QkvArgs &args, size_t token, int first, int width, bool layer, float eps) {
    __shared__ float partial[QKV_WARPS];
    Moments moments = {0.0f, 0.0f};
    if (layer) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) sum += qkv_element<T>(args, token, first + i);
        moments.mean = block_sum(sum, partial) / width;
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float x = qkv_element<T>(args, token, first + i) - moments.mean;
        squares = fmaf(x, x, squares);
    }
    moments.factor = 1.0f / sqrtf(block_sum(squares, partial) / width + eps);
    return moments;
}

// Of one head, by a warp.
__device__ __forceinline__ Moments moments_of_head(const float *head, int width, bool layer, float eps) {
    Moments moments = {0.0f, 0.0f};
    if (layer) {
        float sum = 0.0f;
        for (int i = lane_index(); i < width; i += WARP) sum += head[i];
        moments.mean = warp_sum(sum) / width;
    }
    float squares = 0.0f;
    for (int i = lane_index(); i < width; i += WARP) squares = fmaf(head[i] - moments.mean, head[i] - moments.mean, squares);
    moments.factor = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    return moments;
}

// The element `i` of a head, turned.
__device__ __forceinline__ float turned(const QkvArgs &args, size_t token, const float *head, int i) {
    if (args.cosines == nullptr || i >= 2 * args.half) return head[i];
    int angle = i % args.half;
    float cosine = args.cosines[token * args.half + angle], sine = args.sines[token * args.half + angle];
    return i < args.half ? head[i] * cosine - head[i + args.half] * sine : head[i] * cosine + head[i - args.half] * sine;
}

template <typename T, typename C>
__device__ __forceinline__ void store(const QkvArgs &args, size_t token, int head, int i, float value) {
    if (head < args.num_heads) {
        ((T *)args.q)[(token * args.num_heads + head) * args.head_dim + i] = rounded<T>(value);
        return;
    }
    if (args.slots[token] == NOWHERE) return;
    size_t slot = args.slots[token];
    size_t block = slot / args.block_size, offset = slot % args.block_size;
    int kv_head = (head - args.num_heads) % args.num_kv_heads;
    size_t block_head = block * args.num_kv_heads + kv_head;
    if (head < args.num_heads + args.num_kv_heads) {
        size_t tile = block_head * (args.block_size / KV_TILE) + offset / KV_TILE;
        ((C *)args.k)[(tile * args.head_dim + i) * KV_TILE + offset % KV_TILE] = rounded<C>(value);
    } else {
        ((C *)args.v)[(block_head * args.block_size + offset) * args.padded_head_dim + i] = rounded<C>(value);
    }
}

// Grid (num_tokens, blocks of a token), QKV_WARPS warps.
template <typename T, typename C> __device__ __forceinline__ void prepare_qkv(const QkvArgs &args) {
    __shared__ float heads[QKV_WARPS][MOST_HEAD_DIM];
    size_t token = blockIdx.x;
    float *head = heads[warp_index()];
    Moments q_moments = {0.0f, 1.0f}, k_moments = {0.0f, 1.0f};
    if (args.q_weight != nullptr && args.whole_token) {
        int q_width = args.num_heads * args.head_dim, k_width = args.num_kv_heads * args.head_dim;
        q_moments = moments_of_token<T>(args, token, 0, q_width, args.q_bias != nullptr, args.q_eps);
        k_moments = moments_of_token<T>(args, token, q_width, k_width, args.k_bias != nullptr, args.k_eps);
    }
    int first = blockIdx.y * QKV_WARPS + warp_index(), stride = gridDim.y * QKV_WARPS;
    for (int index = first; index < args.num_heads + 2 * args.num_kv_heads; index += stride) {
        for (int i = lane_index(); i < args.head_dim; i += WARP) {
            head[i] = qkv_element<T>(args, token, index * args.head_dim + i);
        }
        bool is_query = index < args.num_heads, is_value = index >= args.num_heads + args.num_kv_heads;
        if (args.q_weight != nullptr && !is_value) {
            const float *weight = is_query ? args.q_weight : args.k_weight;
            const float *bias = is_query ? args.q_bias : args.k_bias;
            Moments moments = is_query ? q_moments : k_moments;
            if (args.whole_token) {
                int start = (is_query ? index : index - args.num_heads) * args.head_dim;
                weight += start;
                if (bias != nullptr) bias += start;
            } else {
                moments = moments_of_head(head, args.head_dim, bias != nullptr, is_query ? args.q_eps : args.k_eps);
            }
            for (int i = lane_index(); i < args.head_dim; i += WARP) {
                float normed = (head[i] - moments.mean) * moments.factor * weight[i];
                head[i] = bias == nullptr ? normed : normed + bias[i];
            }
        }
        __syncwarp(); // a turned element reads one of another lane
        for (int i = lane_index(); i < args.head_dim; i += WARP) {
            float value = is_value ? head[i] : turned(args, token, head, i);
            store<T, C>(args, token, index, i, value);
        }
        __syncwarp(); // the next head takes the place of this one
    }
}

#define PREPARE_QKV(NAME, T, CACHE, C)                                                                                 \
    extern "C" __global__ void prepare_qkv_##NAME##_##CACHE(const QkvArgs args) { prepare_qkv<T, C>(args); }

PREPARE_QKV(f32, float, f32, float)
PREPARE_QKV(f32, float, bf16, bf16)
PREPARE_QKV(bf16, bf16, f32, float)
PREPARE_QKV(bf16, bf16, bf16, bf16)
