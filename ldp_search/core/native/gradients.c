/* Stochastic rounding of gradients for CPUs; native/gradients.py says what each kernel must equal. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

#define TINY 0x1p-126f /* of a scale: the smallest normal fp32 */
#define CHUNK (1 << 17) /* elements of a slice that the second cache still holds when it is read again */

void ldp_measure(const void *x, int type, shape_t s, float *low, float *high, float *spread, int threads);

/* Counter-based: 32 random bits from a position and a seed of 64 bits (the mixing of "lowbias32", C. Wellons 2018). */
static inline uint32_t noise(uint32_t i, uint32_t a, uint32_t b) {
    i += a;
    i ^= i >> 16, i *= 0x7feb352dU;
    i ^= i >> 15, i ^= b, i *= 0x846ca68bU;
    return i ^ (i >> 16);
}

/* each: scales run along the elements, inverses (1 / scale) beside them; else one scale for all */
static inline __attribute__((always_inline)) void stochastic_run(const float *x, float *y, int64_t n, const float *scales,
        const float *inverses, float o, float most, float least, uint32_t first, uint32_t a, uint32_t b, int each, int offset,
        int codes, float shift) {
    float scale = *scales, inverse = 1 / scale;
    for (int64_t i = 0; i < n; i++) {
        float v = (offset ? x[i] - o : x[i]) * (each ? inverses[i] : inverse), whole = floorf(v);
        float u = (float)(int32_t)(noise(first + (uint32_t)i, a, b) >> 8) * 0x1p-24f; /* [0, 1) */
        float c = v - whole > u ? whole + 1 : whole;
        c = c > most ? most : c;
        c = c < least ? least : c;
        if (codes) { y[i] = c - shift; continue; }
        c *= each ? scales[i] : scale;
        y[i] = offset ? c + o : c;
    }
}

/* What is rounded, to codes within `least` and `most` whatever the rounding of the division; y of INT8: the codes minus `shift`. */
typedef struct { const void *x; int x_type; void *y; int y_type; float least, most, shift; uint64_t seed; } task_t;

static inline __attribute__((always_inline)) void round_block(task_t t, int64_t start, int64_t n, const float *scales,
        const float *inverses, float o, int each, int offset) {
    float buffer[BLOCK], results[BLOCK];
    uint32_t first = (uint32_t)start, a = (uint32_t)t.seed, b = (uint32_t)(t.seed >> 32) + (uint32_t)(start >> 32);
    const float *v = load(t.x, t.x_type, start, n, buffer);
    float *out = room(t.y, t.y_type, start, results);
    if (t.y_type == INT8) stochastic_run(v, out, n, scales, inverses, o, t.most, t.least, first, a, b, each, offset, 1, t.shift);
    else stochastic_run(v, out, n, scales, inverses, o, t.most, t.least, first, a, b, each, offset, 0, 0);
    store(t.y, t.y_type, start, n, out);
}

/* Each element on a grid of its own. Not inlined: gcc 12 does not vectorize it within some loops. */
static __attribute__((noinline)) void round_each(task_t t, int64_t start, int64_t n, const float *scales, const float *inverses) {
    round_block(t, start, n, scales, inverses, 0, 1, 0);
}

/* On the affine grid of the whole tensor, from its minimum to its maximum. y of INT8: codes moved by half of their range.
   grid: (scale, offset) of what y holds. */
void ldp_gradient_affine(const void *x, int x_type, void *y, int y_type, int64_t numel, const float *bits, uint64_t seed,
        float *grid, int threads) {
    float low, high, most = exp2f(*bits) - 1, shift = y_type == INT8 ? exp2f(*bits - 1) : 0;
    ldp_measure(x, x_type, (shape_t){1, 1, numel}, &low, &high, 0, threads);
    float scale = (high - low) / most;
    scale = scale < TINY ? TINY : scale;
    task_t t = {x, x_type, y, y_type, 0, most, shift, seed};
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t start = 0; start < numel; start += BLOCK)
        round_block(t, start, numel - start < BLOCK ? numel - start : BLOCK, &scale, 0, low, 0, 1);
    grid[0] = scale, grid[1] = shift * scale + low;
}

/* -- symmetric grids, one a slice: scale = largest magnitude / most ----------------------------------------------------------- */

/* Bits of a magnitude: as integers they have the order of the magnitudes, and a NaN is above them all. */
static inline int32_t magnitude(float f) { int32_t b; memcpy(&b, &f, 4); return b & 0x7fffffff; }

static inline float scale_of(int32_t largest, float most) {
    float f; memcpy(&f, &largest, 4);
    f /= most;
    return f < TINY ? TINY : f;
}

static int32_t largest_of(const void *x, int type, int64_t start, int64_t n, int32_t largest) {
    float buffer[BLOCK];
    for (int64_t end = start + n; start < end; start += BLOCK) {
        int64_t m = end - start < BLOCK ? end - start : BLOCK;
        const float *v = load(x, type, start, m, buffer);
        for (int64_t i = 0; i < m; i++) { int32_t k = magnitude(v[i]); largest = k > largest ? k : largest; }
    }
    return largest;
}

static void round_slice(task_t t, int64_t start, int64_t n, float scale) {
    for (int64_t end = start + n; start < end; start += BLOCK)
        round_block(t, start, end - start < BLOCK ? end - start : BLOCK, &scale, 0, 0, 0, 0);
}

/* A slice is one stretch of memory: it is rounded while it still lies in the cache. */
static void whole_slices(task_t t, shape_t s, float *scales, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        scales[c] = scale_of(largest_of(t.x, t.x_type, c * s.inner, s.inner, 0), t.most);
        round_slice(t, c * s.inner, s.inner, scales[c]);
    }
}

static void one_slice(task_t t, int64_t numel, float *scale, int threads) {
    int32_t largest = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(max : largest)
    for (int64_t start = 0; start < numel; start += CHUNK)
        largest = largest_of(t.x, t.x_type, start, numel - start < CHUNK ? numel - start : CHUNK, largest);
    *scale = scale_of(largest, t.most);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t start = 0; start < numel; start += CHUNK)
        round_slice(t, start, numel - start < CHUNK ? numel - start : CHUNK, *scale);
}

static void scattered_slices(task_t t, shape_t s, float *scales, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        int32_t largest = 0;
        for (int64_t o = 0; o < s.outer; o++)
            largest = largest_of(t.x, t.x_type, (o * s.channels + c) * s.inner, s.inner, largest);
        scales[c] = scale_of(largest, t.most);
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < s.outer * s.channels; k++) round_slice(t, k * s.inner, s.inner, scales[k % s.channels]);
}

/* Channels run along the elements. Few of them are repeated to a line of up to BLOCK, so that loops are long. */
static shape_t lines(shape_t s) {
    int64_t length = s.channels < BLOCK ? BLOCK / s.channels * s.channels : s.channels;
    return (shape_t){(s.outer * s.channels + length - 1) / length, length, 1};
}

static run_t run_of_lines(shape_t s, int64_t numel, int64_t k) { /* the last line may be short, or empty from here on */
    run_t r = run(s, k);
    r.n = numel - r.start < r.n ? numel - r.start : r.n;
    return r;
}

static void interleaved_slices(task_t t, shape_t s, float *scales, int threads) {
    shape_t l = lines(s);
    int64_t numel = s.outer * s.channels;
    int32_t *largest = calloc(l.channels, sizeof *largest);
    float *scale = malloc(2 * l.channels * sizeof *scale), *inverse = scale + l.channels;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int32_t *mine = calloc(l.channels, sizeof *mine);
        float buffer[BLOCK];
#pragma omp for schedule(static)
        for (int64_t k = 0; k < runs(l); k++) {
            run_t r = run_of_lines(l, numel, k);
            if (r.n <= 0) continue;
            const float *v = load(t.x, t.x_type, r.start, r.n, buffer);
            int32_t *to = mine + r.channel;
            for (int64_t i = 0; i < r.n; i++) { int32_t m = magnitude(v[i]); to[i] = m > to[i] ? m : to[i]; }
        }
#pragma omp critical
        for (int64_t i = 0; i < l.channels; i++) largest[i] = mine[i] > largest[i] ? mine[i] : largest[i];
        free(mine);
    }
    for (int64_t i = s.channels; i < l.channels; i++) {
        int64_t c = i % s.channels;
        largest[c] = largest[i] > largest[c] ? largest[i] : largest[c];
    }
    for (int64_t c = 0; c < s.channels; c++) scales[c] = scale_of(largest[c], t.most);
    for (int64_t i = 0; i < l.channels; i++) scale[i] = scales[i % s.channels], inverse[i] = 1 / scale[i];
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < runs(l); k++) {
        run_t r = run_of_lines(l, numel, k);
        if (r.n > 0) round_each(t, r.start, r.n, scale + r.channel, inverse + r.channel);
    }
    free(largest), free(scale);
}

/* y = x on symmetric grids of so many bits, one a channel of s, or (y of INT8) the codes; zero stays zero. scales: (channels,). */
void ldp_gradient_slices(const void *x, int x_type, void *y, int y_type, shape_t s, const float *bits, uint64_t seed,
        float *scales, int threads) {
    float most = exp2f(*bits - 1) - 1;
    task_t t = {x, x_type, y, y_type, -most, most, 0, seed};
    if (s.channels == 1) one_slice(t, s.outer * s.inner, scales, threads);
    else if (along(s)) interleaved_slices(t, s, scales, threads);
    else if (s.outer == 1) whole_slices(t, s, scales, threads);
    else scattered_slices(t, s, scales, threads);
}

/* -- symmetric grids, one for every `size` values along s.channels ------------------------------------------------------------ */

/* Scales, and their inverses, of `n` values in blocks of `size`; found: one a block, or NULL. */
static inline __attribute__((always_inline)) void block_scales(const float *v, int64_t n, const int64_t size, float most, float *scales,
        float *inverses, float *found) {
    for (int64_t i = 0; i < n; i += size) {
        int64_t m = n - i < size ? n - i : size;
        int32_t largest = 0;
        if (m == size) for (int64_t j = 0; j < size; j++) { int32_t b = magnitude(v[i + j]); largest = b > largest ? b : largest; }
        else for (int64_t j = 0; j < m; j++) { int32_t b = magnitude(v[i + j]); largest = b > largest ? b : largest; }
        float scale = scale_of(largest, most), inverse = 1 / scale;
        for (int64_t j = 0; j < (m == size ? size : m); j++) scales[i + j] = scale, inverses[i + j] = inverse;
        if (found) found[i / size] = scale;
    }
}

/* Blocks that follow one another in memory; of a row of `length`, the last one may be short. */
static void blocks_along(task_t t, int64_t rows, int64_t length, int64_t size, float *found, int threads) {
    int64_t step = size < BLOCK ? BLOCK / size * size : size, parts = (length + step - 1) / step, blocks = (length + size - 1) / size;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < rows * parts; k++) {
        float buffer[BLOCK], scales[BLOCK], inverses[BLOCK];
        int64_t from = k % parts * step, n = length - from < step ? length - from : step, start = k / parts * length + from;
        float *to = found ? found + k / parts * blocks + from / size : 0;
        if (size > BLOCK) {
            float scale = scale_of(largest_of(t.x, t.x_type, start, n, 0), t.most);
            if (to) *to = scale;
            round_slice(t, start, n, scale);
            continue;
        }
        const float *v = load(t.x, t.x_type, start, n, buffer);
        if (size == 32) block_scales(v, n, 32, t.most, scales, inverses, to); /* sizes known to the compiler */
        else if (size == 16) block_scales(v, n, 16, t.most, scales, inverses, to);
        else block_scales(v, n, size, t.most, scales, inverses, to);
        round_each(t, start, n, scales, inverses);
    }
}

/* The first n values, `times` one after the other. */
static void repeat(float *values, int64_t n, int64_t times) {
    for (int64_t done = 1; done < times; done *= 2) {
        int64_t more = times - done < done ? times - done : done;
        memcpy(values + done * n, values, more * n * sizeof *values);
    }
}

/* Blocks across rows of `inner` values; a small one is rounded at once. */
static void blocks_across(task_t t, shape_t s, int64_t size, float *found, int threads) {
    int64_t blocks = (s.channels + size - 1) / size, parts = (s.inner + BLOCK - 1) / BLOCK, once = size * s.inner <= BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < s.outer * blocks * parts; k++) {
        float buffer[BLOCK], scales[BLOCK], inverses[BLOCK];
        int32_t largest[BLOCK];
        int64_t first = k / parts % blocks * size, rows = s.channels - first < size ? s.channels - first : size;
        int64_t from = k % parts * BLOCK, n = s.inner - from < BLOCK ? s.inner - from : BLOCK;
        int64_t start = (k / parts / blocks * s.channels + first) * s.inner + from;
        memset(largest, 0, n * sizeof *largest);
        for (int64_t r = 0; r < rows; r++) {
            const float *v = load(t.x, t.x_type, start + r * s.inner, n, buffer);
            for (int64_t i = 0; i < n; i++) { int32_t b = magnitude(v[i]); largest[i] = b > largest[i] ? b : largest[i]; }
        }
        for (int64_t i = 0; i < n; i++) scales[i] = scale_of(largest[i], t.most), inverses[i] = 1 / scales[i];
        if (found) memcpy(found + k / parts * s.inner + from, scales, n * sizeof *scales);
        if (once) repeat(scales, n, rows), repeat(inverses, n, rows);
        for (int64_t r = 0; r < (once ? 1 : rows); r++) round_each(t, start + r * s.inner, once ? rows * n : n, scales, inverses);
    }
}

/* y = x on symmetric grids of so many bits, one for every `size` values along s.channels, or the codes. found: (outer, blocks, inner)
   scales, or NULL. */
void ldp_gradient_blocks(const void *x, int x_type, void *y, int y_type, shape_t s, int64_t size, const float *bits,
        uint64_t seed, float *found, int threads) {
    float most = exp2f(*bits - 1) - 1;
    task_t t = {x, x_type, y, y_type, -most, most, 0, seed};
    size = size < s.channels ? size : s.channels;
    if (s.inner > 1) blocks_across(t, s, size, found, threads);
    else if (s.channels % size == 0) blocks_along(t, 1, s.outer * s.channels, size, found, threads);
    else blocks_along(t, s.outer, s.channels, size, found, threads);
}
