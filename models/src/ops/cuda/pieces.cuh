// Rows in pieces of 8 elements, which a lane loads and stores 16 bytes at a time. A piece begins at a multiple of 16 bytes where
// its row is a multiple of 8 elements, since the device's memory is aligned to more.
#pragma once
#include "common.cuh"

constexpr int PIECE = 8;

struct Piece {
    float values[PIECE];
};

__device__ __forceinline__ Piece load_piece(const float *at) {
    float4 low = *(const float4 *)at, high = *(const float4 *)(at + 4);
    return Piece{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ Piece load_piece(const bf16 *at) {
    uint4 words = *(const uint4 *)at;
    const uint32_t pairs[PIECE / 2] = {words.x, words.y, words.z, words.w};
    Piece piece;
    for (int i = 0; i < PIECE / 2; i++) {
        piece.values[2 * i] = __uint_as_float(pairs[i] << 16);
        piece.values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
    return piece;
}

__device__ __forceinline__ void store_piece(float *at, const Piece &piece) {
    const float *values = piece.values;
    *(float4 *)at = float4{values[0], values[1], values[2], values[3]};
    *(float4 *)(at + 4) = float4{values[4], values[5], values[6], values[7]};
}

__device__ __forceinline__ void store_piece(bf16 *at, const Piece &piece) {
    bf16 numbers[PIECE];
    for (int i = 0; i < PIECE; i++) numbers[i] = rounded<bf16>(piece.values[i]);
    uint4 words;
    memcpy(&words, numbers, sizeof words);
    *(uint4 *)at = words;
}
