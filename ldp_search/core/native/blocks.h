/* How every kernel reads and writes a tensor: dense memory seen as (outer, channels, inner), fp32 or bf16 (a `type` argument),
   in blocks that fit the first cache and pass through fp32. */
#include <stdint.h>

#include "bf16.h"

#define BLOCK 4096
enum { FP32, BF16, INT8 };

typedef struct { int64_t outer, channels, inner; } shape_t;
typedef struct { const float *scale, *offset, *low, *high; } grid_t; /* one value a channel; NULL: none */

static inline const float *load(const void *p, int type, int64_t start, int64_t n, float *buffer) {
    if (type == FP32) return (const float *)p + start;
    const uint16_t *h = (const uint16_t *)p + start;
    for (int64_t i = 0; i < n; i++) buffer[i] = from_bf16(h[i]);
    return buffer;
}

static inline float *room(void *p, int type, int64_t start, float *buffer) { /* where a block of results may be written */
    return type == FP32 ? (float *)p + start : buffer;
}

static inline void store(void *p, int type, int64_t start, int64_t n, const float *buffer) {
    if (type == BF16) { uint16_t *h = (uint16_t *)p + start; for (int64_t i = 0; i < n; i++) h[i] = to_bf16(buffer[i]); }
    if (type == INT8) { int8_t *c = (int8_t *)p + start; for (int64_t i = 0; i < n; i++) c[i] = (int8_t)(int32_t)buffer[i]; }
}

/* -- blocks: a run of elements that lies within one row, with its channel; along != 0: channels run along the elements ------ */

typedef struct { int64_t start, n, channel; } run_t;

static inline int64_t runs(shape_t s) {
    int64_t length = s.inner == 1 ? s.channels : s.inner, rows = s.inner == 1 ? s.outer : s.outer * s.channels;
    return rows * ((length + BLOCK - 1) / BLOCK);
}

static inline run_t run(shape_t s, int64_t k) {
    int64_t length = s.inner == 1 ? s.channels : s.inner, blocks = (length + BLOCK - 1) / BLOCK;
    int64_t row = k / blocks, first = k % blocks * BLOCK, n = length - first < BLOCK ? length - first : BLOCK;
    return (run_t){row * length + first, n, s.inner == 1 ? first : row % s.channels};
}

static inline int along(shape_t s) { return s.inner == 1 && s.channels > 1; }
