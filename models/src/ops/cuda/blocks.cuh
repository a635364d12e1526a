// Quantised weights in planes, as ../block_planes.rs lays them out, dequantised as ../blocks.rs says: each product and difference
// is rounded to f32, and none is joined with the next operation.
//
// A thread takes a piece of 8 elements: 4 or 8 bytes of quants, so that a warp reads whole lines of them, and of the
// activations 16 bytes a thread side by side. Four pieces are a unit, 32 are a block of 256.
#pragma once
#include "pieces.cuh"
#include <cuda_fp16.h>

// Of all rows, or from some row on. Planes that a format lacks are empty.
struct Blocks {
    const void *quants;
    const uint32_t *high_bits;
    const void *unit_scales;
    const void *block_scales;
};

// Of a piece's elements 0 to 3 and 4 to 7, a byte each, with the format's offset.
struct Codes {
    uint32_t first, last;
};

// w = scale q - min
struct Scale {
    float scale, min;
};

__device__ __forceinline__ float half_bits(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }

// Byte `index` of `codes`, less `offset`: exact, by way of the numbers from 2^23 on, whose last bit counts ones.
__device__ __forceinline__ float quant(uint32_t codes, int index, float offset) {
    return __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7440u | index)) - (8388608.0f + offset);
}

__device__ __forceinline__ Codes nibbles(const void *quants, int piece) {
    uint32_t word = ((const uint32_t *)quants)[piece];
    return Codes{word & 0x0f0f0f0fu, word >> 4 & 0x0f0f0f0fu};
}

struct Q8_0 {
    static constexpr int UNIT_BYTES = 32, BLOCK_SCALE_BYTES = 0;
    static constexpr float OFFSET = 128.0f;
    static constexpr bool HAS_MIN = false;
    static __device__ __forceinline__ Codes codes(const Blocks &row, int piece) {
        uint2 words = ((const uint2 *)row.quants)[piece];
        return Codes{words.x, words.y};
    }
    static __device__ __forceinline__ Scale scale(const Blocks &row, int piece) {
        return Scale{half_bits(((const uint16_t *)row.unit_scales)[piece / 4]), 0.0f};
    }
};

struct Q4_0 {
    static constexpr int UNIT_BYTES = 16, BLOCK_SCALE_BYTES = 0;
    static constexpr float OFFSET = 8.0f;
    static constexpr bool HAS_MIN = false;
    static __device__ __forceinline__ Codes codes(const Blocks &row, int piece) { return nibbles(row.quants, piece); }
    static __device__ __forceinline__ Scale scale(const Blocks &row, int piece) { return Q8_0::scale(row, piece); }
};

struct Q4_K {
    static constexpr int UNIT_BYTES = 16, BLOCK_SCALE_BYTES = 4;
    static constexpr float OFFSET = 0.0f;
    static constexpr bool HAS_MIN = true;
    static __device__ __forceinline__ Codes codes(const Blocks &row, int piece) { return nibbles(row.quants, piece); }
    static __device__ __forceinline__ Scale scale(const Blocks &row, int piece) {
        uint32_t both = ((const uint16_t *)row.unit_scales)[piece / 4];
        uint32_t floats = ((const uint32_t *)row.block_scales)[piece / 32];
        float scale = __fmul_rn(half_bits(floats & 0xffffu), (float)(both & 0xffu));
        return Scale{scale, __fmul_rn(half_bits(floats >> 16), (float)(both >> 8))};
    }
};

struct Q6_K {
    static constexpr int UNIT_BYTES = 16, BLOCK_SCALE_BYTES = 2;
    static constexpr float OFFSET = 32.0f;
    static constexpr bool HAS_MIN = false;
    static __device__ __forceinline__ Codes codes(const Blocks &row, int piece) {
        Codes low = nibbles(row.quants, piece);
        uint32_t high = row.high_bits[piece / 2] >> (piece % 2 * 4);
        return Codes{low.first | (high << 4 & 0x30303030u), low.last | (high << 2 & 0x30303030u)};
    }
    static __device__ __forceinline__ Scale scale(const Blocks &row, int piece) {
        float d = half_bits(((const uint16_t *)row.block_scales)[piece / 32]);
        return Scale{__fmul_rn(d, (float)((const int8_t *)row.unit_scales)[piece / 2]), 0.0f};
    }
};

// From the unit `first` on, which is the first of a block.
template <typename Format> __device__ __forceinline__ Blocks blocks_from(const Blocks &all, size_t first) {
    Blocks from;
    from.quants = (const char *)all.quants + first * Format::UNIT_BYTES;
    from.high_bits = all.high_bits + first * 2;
    from.unit_scales = (const char *)all.unit_scales + first * 2;
    from.block_scales = (const char *)all.block_scales + first / 8 * Format::BLOCK_SCALE_BYTES;
    return from;
}

template <typename Format> __device__ __forceinline__ Piece dequantised(const Blocks &row, int piece) {
    Codes codes = Format::codes(row, piece);
    Scale scale = Format::scale(row, piece);
    Piece weights;
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        float weight = __fmul_rn(scale.scale, quant(i < 4 ? codes.first : codes.last, i % 4, Format::OFFSET));
        weights.values[i] = Format::HAS_MIN ? __fsub_rn(weight, scale.min) : weight;
    }
    return weights;
}
