// Rows in pieces of 8 elements, which a lane loads and stores 16 bytes at a time. A piece begins at a multiple of 16 bytes where
// its row is a multiple of 8 elements, since the device's memory is aligned to more.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 8;

struct Chunk {
    float values[CHUNK];
};

__device__ __forceinline__ Chunk load_chunk(const float *at) {
    float4 low = *(const float4 *)at, high = *(const float4 *)(at + 4);
    return Chunk{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ Chunk load_chunk(const bf16 *at) {
    uint4 words = *(const uint4 *)at;
    const uint32_t pairs[CHUNK / 2] = {words.x, words.y, words.z, words.w};
    Chunk chunk;
    for (int i = 0; i < CHUNK / 2; i++) {
        chunk.values[2 * i] = __uint_as_float(pairs[i] << 16);
        chunk.values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
    return chunk;
}

__device__ __forceinline__ void store_chunk(float *at, const Chunk &chunk) {
    const float *values = chunk.values;
    *(float4 *)at = float4{values[0], values[1], values[2], values[3]};
    *(float4 *)(at + 4) = float4{values[4], values[5], values[6], values[7]};
}

__device__ __forceinline__ void store_chunk(bf16 *at, const Chunk &chunk) {
    bf16 numbers[CHUNK];
    for (int i = 0; i < CHUNK; i++) numbers[i] = rounded<bf16>(chunk.values[i]);
    uint4 words;
    memcpy(&words, numbers, sizeof words);
    *(uint4 *)at = words;
}
