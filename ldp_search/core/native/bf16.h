/* bfloat16 as its bits. */
#include <stdint.h>
#include <string.h>

static inline float from_bf16(uint16_t h) { uint32_t b = (uint32_t)h << 16; float f; memcpy(&f, &b, 4); return f; }

static inline uint16_t to_bf16(float f) { /* to nearest even, as torch; a NaN stays one */
    uint32_t b; memcpy(&b, &f, 4);
    return f != f ? 0x7fc0 : (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
