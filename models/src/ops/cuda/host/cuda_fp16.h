// The type of cuda_fp16.h, for the CPU: as many conversions as the kernels use.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

static inline __half __ushort_as_half(unsigned short bits) { return __half{bits}; }

// Exact. The exponent is moved by a product with a power of two, which also takes subnormal numbers.
static inline float __half2float(__half x) {
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = (uint32_t)(x.bits & 0x7fff) << 13;
    float value;
    if (rest >= 0x0f800000u) { // infinite, or not a number
        rest |= 0x70000000u;
        memcpy(&value, &rest, sizeof value);
    } else {
        memcpy(&value, &rest, sizeof value);
        value *= 0x1p112f;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}
