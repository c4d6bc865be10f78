/* One-pass kernels of fake quantization for CPUs; native/__init__.py says what each must equal.

   A tensor is dense memory seen as (outer, channels, inner): one grid a channel, one for all where channels is 1. Values are
   fp32 or bf16 (a `type` argument) and pass through fp32 in blocks that fit the first cache. Compiled with -ffp-contract=off,
   so that every operation rounds as torch's does. Minimum and maximum are taken over the bits of the floats, mapped to integers
   of the same order: they vectorise without licence to reorder floats, and a NaN shows as the largest or smallest integer. */
#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* -- ranges ----------------------------------------------------------------------------------------------------------------- */

static inline int32_t key(float f) { int32_t b; memcpy(&b, &f, 4); return b ^ ((b >> 31) & 0x7fffffff); }

static inline float value(int32_t k) { int32_t b = k ^ ((k >> 31) & 0x7fffffff); float f; memcpy(&f, &b, 4); return f; }

static void range_of(const float *x, int64_t n, int32_t *low, int32_t *high) {
    int32_t lo = *low, hi = *high;
    for (int64_t i = 0; i < n; i++) { int32_t k = key(x[i]); lo = k < lo ? k : lo; hi = k > hi ? k : hi; }
    *low = lo, *high = hi;
}

static double magnitude_of(const float *x, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += fabsf(x[i]);
    return sum;
}

static void finish_range(int32_t lo, int32_t hi, float *low, float *high) {
    int nan = lo < key(-INFINITY) || hi > key(INFINITY);
    *low = nan ? NAN : value(lo), *high = nan ? NAN : value(hi);
}

#define COLUMNS 256

/* COLUMNS channels that run along the elements, all rows */
static void measure_columns(const void *x, int type, shape_t s, int64_t first, float *low, float *high, float *spread) {
    int32_t lo[COLUMNS], hi[COLUMNS];
    float buffer[COLUMNS], sum[COLUMNS];
    int64_t n = s.channels - first < COLUMNS ? s.channels - first : COLUMNS;
    for (int64_t i = 0; i < COLUMNS; i++) lo[i] = INT32_MAX, hi[i] = INT32_MIN, sum[i] = 0;
    for (int64_t row = 0; row < s.outer; row++) {
        const float *v = load(x, type, row * s.channels + first, n, buffer);
        for (int64_t i = 0; i < n; i++) {
            int32_t k = key(v[i]);
            lo[i] = k < lo[i] ? k : lo[i], hi[i] = k > hi[i] ? k : hi[i];
            sum[i] += fabsf(v[i]);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        finish_range(lo[i], hi[i], low + first + i, high + first + i);
        if (spread) spread[first + i] = sum[i] / (float)s.outer;
    }
}

/* low, high, spread (mean magnitude; NULL: not asked for) of each channel */
void ldp_measure(const void *x, int type, shape_t s, float *low, float *high, float *spread, int threads) {
    if (s.channels == 1) {
        int32_t lo = INT32_MAX, hi = INT32_MIN;
        double sum = 0;
        shape_t flat = {1, 1, s.outer * s.inner};
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(min : lo) reduction(max : hi) \
    reduction(+ : sum)
        for (int64_t k = 0; k < runs(flat); k++) {
            float buffer[BLOCK];
            run_t r = run(flat, k);
            const float *v = load(x, type, r.start, r.n, buffer);
            range_of(v, r.n, &lo, &hi);
            if (spread) sum += magnitude_of(v, r.n);
        }
        finish_range(lo, hi, low, high);
        if (spread) *spread = (float)(sum / (double)flat.inner);
        return;
    }
    if (along(s)) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (int64_t first = 0; first < s.channels; first += COLUMNS) measure_columns(x, type, s, first, low, high, spread);
        return;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        float buffer[BLOCK];
        int32_t lo = INT32_MAX, hi = INT32_MIN;
        double sum = 0;
        for (int64_t o = 0; o < s.outer; o++)
            for (int64_t first = 0; first < s.inner; first += BLOCK) {
                int64_t n = s.inner - first < BLOCK ? s.inner - first : BLOCK;
                const float *v = load(x, type, (o * s.channels + c) * s.inner + first, n, buffer);
                range_of(v, n, &lo, &hi);
                if (spread) sum += magnitude_of(v, n);
            }
        finish_range(lo, hi, low + c, high + c);
        if (spread) spread[c] = (float)(sum / (double)(s.outer * s.inner));
    }
}

/* -- rounding --------------------------------------------------------------------------------------------------------------- */

/* Parameters of element i of a run: p[i] where channels run along it, else the one value of its channel. `each` and the
   optional parameters are constants at every call, so that the compiler makes a loop for each combination. */
#define PARAMETERS(r)                                                                                                          \
    const float *ps = g.scale + (one ? 0 : (r).channel), *po = g.offset ? g.offset + (one ? 0 : (r).channel) : ps,            \
                *pl = g.low ? g.low + (one ? 0 : (r).channel) : ps, *ph = g.high ? g.high + (one ? 0 : (r).channel) : ps

static inline __attribute__((always_inline)) float clamped(float x, float low, float high) {
    x = x > high ? high : x;
    return x < low ? low : x;
}

static inline __attribute__((always_inline)) void round_run(const float *x, float *y, int64_t n, const float *ps, const float *po,
        const float *pl, const float *ph, int each, int offset, int clip, int codes, float shift) {
    for (int64_t i = 0; i < n; i++) {
        float s = ps[each ? i : 0], o = offset ? po[each ? i : 0] : 0, v = x[i];
        if (clip) v = clamped(v, pl[each ? i : 0], ph[each ? i : 0]);
        if (offset) v -= o;
        v = rintf(v / s);
        if (codes) { y[i] = v - shift; continue; }
        v *= s;
        y[i] = offset ? v + o : v;
    }
}

#define CASES(F, ...)                                                                                                          \
    do {                                                                                                                       \
        int form = (along(s) && !one ? 4 : 0) | (g.offset ? 2 : 0) | (g.low ? 1 : 0);                                          \
        if (form == 0) F(__VA_ARGS__, 0, 0, 0); else if (form == 1) F(__VA_ARGS__, 0, 0, 1);                                   \
        else if (form == 2) F(__VA_ARGS__, 0, 1, 0); else if (form == 3) F(__VA_ARGS__, 0, 1, 1);                              \
        else if (form == 4) F(__VA_ARGS__, 1, 0, 0); else if (form == 5) F(__VA_ARGS__, 1, 0, 1);                              \
        else if (form == 6) F(__VA_ARGS__, 1, 1, 0); else F(__VA_ARGS__, 1, 1, 1);                                             \
    } while (0)
#define VALUES(x, y, n, shift, each, offset, clip) round_run(x, y, n, ps, po, pl, ph, each, offset, clip, 0, 0)
#define CODES(x, y, n, shift, each, offset, clip) round_run(x, y, n, ps, po, pl, ph, each, offset, clip, 1, shift)

/* y = the values of the grid next to x, or (y of INT8) their codes minus `shift` */
void ldp_round(const void *x, int x_type, void *y, int y_type, shape_t s, grid_t g, const float *shift, int threads) {
    int one = s.channels == 1;
    float moved = shift ? *shift : 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < runs(s); k++) {
        float buffer[BLOCK], results[BLOCK];
        run_t r = run(s, k);
        PARAMETERS(r);
        const float *v = load(x, x_type, r.start, r.n, buffer);
        float *out = room(y, y_type, r.start, results);
        if (y_type == INT8) CASES(CODES, v, out, r.n, moved); else CASES(VALUES, v, out, r.n, 0);
        store(y, y_type, r.start, r.n, out);
    }
}

/* -- gradients of the grid ---------------------------------------------------------------------------------------------------- */

typedef struct { double scale, low, high; } sums_t;

/* sum(g (x_q - x) / scale) inside the range, sums of g below and above it; g becomes 0 there */
static inline __attribute__((always_inline)) sums_t sums_run(const float *x, float *gy, int64_t n, float s, float o, float l,
        float h, int offset, int clip) {
    float scale = 0, low = 0, high = 0;
#pragma omp simd reduction(+ : scale, low, high)
    for (int64_t i = 0; i < n; i++) {
        float v = x[i], gi = gy[i];
        if (clip) {
            float above = v > h ? gi : 0, below = v < l ? gi : 0;
            high += above, low += below;
            gi = v > h || v < l ? 0 : gi;
            gy[i] = gi;
        }
        float q = rintf((offset ? v - o : v) / s) * s;
        scale += gi * ((offset ? q + o : q) - v);
    }
    return (sums_t){scale, low, high};
}

static inline sums_t sums_of(const float *x, float *gy, int64_t n, float s, float o, float l, float h, int offset, int clip) {
    if (offset) return clip ? sums_run(x, gy, n, s, o, l, h, 1, 1) : sums_run(x, gy, n, s, o, l, h, 1, 0);
    return clip ? sums_run(x, gy, n, s, o, l, h, 0, 1) : sums_run(x, gy, n, s, o, l, h, 0, 0);
}

static sums_t sums_block(const void *x, int x_type, void *gy, int g_type, grid_t g, int64_t c, int64_t start, int64_t n) {
    float xs[BLOCK], gs[BLOCK];
    const float *v = load(x, x_type, start, n, xs);
    float *w = (float *)load(gy, g_type, start, n, gs);
    float o = g.offset ? g.offset[c] : 0, l = g.low ? g.low[c] : 0, h = g.high ? g.high[c] : 0;
    sums_t sums = sums_of(v, w, n, g.scale[c], o, l, h, g.offset != 0, g.low != 0);
    if (g.low) store(gy, g_type, start, n, w);
    return sums;
}

/* The same where channels run along the elements: COLUMNS of them, all rows. */
static void sums_columns(const void *x, int x_type, void *gy, int g_type, shape_t s, grid_t g, int64_t first, float *results) {
    float scale[COLUMNS] = {0}, low[COLUMNS] = {0}, high[COLUMNS] = {0}, xs[COLUMNS], gs[COLUMNS];
    int64_t n = s.channels - first < COLUMNS ? s.channels - first : COLUMNS;
    const float *ps = g.scale + first, *po = g.offset ? g.offset + first : 0, *pl = g.low + first, *ph = g.high + first;
    for (int64_t row = 0; row < s.outer; row++) {
        int64_t start = row * s.channels + first;
        const float *v = load(x, x_type, start, n, xs);
        float *w = (float *)load(gy, g_type, start, n, gs);
        if (g.low) {
            for (int64_t i = 0; i < n; i++) {
                high[i] += v[i] > ph[i] ? w[i] : 0, low[i] += v[i] < pl[i] ? w[i] : 0;
                w[i] = v[i] > ph[i] || v[i] < pl[i] ? 0 : w[i];
            }
            store(gy, g_type, start, n, w);
        }
        if (po) for (int64_t i = 0; i < n; i++) scale[i] += w[i] * (rintf((v[i] - po[i]) / ps[i]) * ps[i] + po[i] - v[i]);
        else for (int64_t i = 0; i < n; i++) scale[i] += w[i] * (rintf(v[i] / ps[i]) * ps[i] - v[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t c = first + i;
        results[c] = scale[i] / ps[i];
        if (g.low) results[s.channels + c] = low[i], results[2 * s.channels + c] = high[i];
    }
}

/* results: (3, channels) of dL/dscale, dL/dlow, dL/dhigh; the first row alone where nothing is clipped */
void ldp_sums(const void *x, int x_type, void *gy, int g_type, shape_t s, grid_t g, float *results, int threads) {
    if (s.channels == 1) {
        shape_t flat = {1, 1, s.outer * s.inner};
        double scale = 0, low = 0, high = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : scale, low, high)
        for (int64_t k = 0; k < runs(flat); k++) {
            run_t r = run(flat, k);
            sums_t t = sums_block(x, x_type, gy, g_type, g, 0, r.start, r.n);
            scale += t.scale, low += t.low, high += t.high;
        }
        results[0] = (float)(scale / g.scale[0]);
        if (g.low) results[1] = (float)low, results[2] = (float)high;
        return;
    }
    if (along(s)) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (int64_t first = 0; first < s.channels; first += COLUMNS) sums_columns(x, x_type, gy, g_type, s, g, first, results);
        return;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t c = 0; c < s.channels; c++) {
        sums_t t = {0, 0, 0};
        for (int64_t o = 0; o < s.outer; o++)
            for (int64_t first = 0; first < s.inner; first += BLOCK) {
                int64_t n = s.inner - first < BLOCK ? s.inner - first : BLOCK;
                sums_t u = sums_block(x, x_type, gy, g_type, g, c, (o * s.channels + c) * s.inner + first, n);
                t.scale += u.scale, t.low += u.low, t.high += u.high;
            }
        results[c] = (float)(t.scale / g.scale[c]);
        if (g.low) results[s.channels + c] = (float)t.low, results[2 * s.channels + c] = (float)t.high;
    }
}

/* -- stochastic rounding ------------------------------------------------------------------------------------------------------ */

/* Counter-based: 32 random bits from a position and a seed of 64 bits (the mixing of "lowbias32", C. Wellons 2018). */
static inline uint32_t noise(uint32_t i, uint32_t a, uint32_t b) {
    i += a;
    i ^= i >> 16, i *= 0x7feb352dU;
    i ^= i >> 15, i ^= b, i *= 0x846ca68bU;
    return i ^ (i >> 16);
}

static inline __attribute__((always_inline)) void stochastic_run(const float *x, float *y, int64_t n, float s, float o, float most,
        float least, uint32_t first, uint32_t a, uint32_t b, int offset, int codes, float shift) {
    float inverse = 1 / s;
    for (int64_t i = 0; i < n; i++) {
        float v = (offset ? x[i] - o : x[i]) * inverse, whole = floorf(v);
        float u = (float)(int32_t)(noise(first + (uint32_t)i, a, b) >> 8) * 0x1p-24f; /* [0, 1) */
        float c = v - whole > u ? whole + 1 : whole;
        c = c > most ? most : c;
        c = c < least ? least : c;
        if (codes) { y[i] = c - shift; continue; }
        c *= s;
        y[i] = offset ? c + o : c;
    }
}

/* y = x on the grid, up with the probability of the fraction, or (y of INT8) the codes minus `shift`. Codes lie within 0 and
   `most` where there is an offset, else within -most and most, whatever the rounding of the division. */
void ldp_stochastic(const void *x, int x_type, void *y, int y_type, int64_t numel, const float *scale, const float *offset,
        const float *most, uint64_t seed, float shift, int threads) {
    shape_t s = {1, 1, numel};
    float sc = *scale, o = offset ? *offset : 0, top = *most;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < runs(s); k++) {
        float buffer[BLOCK], results[BLOCK];
        run_t r = run(s, k);
        uint32_t first = (uint32_t)r.start, a = (uint32_t)seed, b = (uint32_t)(seed >> 32) + (uint32_t)(r.start >> 32);
        const float *v = load(x, x_type, r.start, r.n, buffer);
        float *out = room(y, y_type, r.start, results);
        if (y_type == INT8) {
            if (offset) stochastic_run(v, out, r.n, sc, o, top, offset ? 0 : -top, first, a, b, 1, 1, shift);
            else stochastic_run(v, out, r.n, sc, o, top, offset ? 0 : -top, first, a, b, 0, 1, shift);
        } else if (offset) stochastic_run(v, out, r.n, sc, o, top, offset ? 0 : -top, first, a, b, 1, 0, 0);
        else stochastic_run(v, out, r.n, sc, o, top, offset ? 0 : -top, first, a, b, 0, 0, 0);
        store(y, y_type, r.start, r.n, out);
    }
}

/* -- 16-bit codes of what is saved for backward: blocks with a range of their own ------------------------------------------- */

/* codes[i] = round((x - low) / step) - 32768 with step = (high - low) / 65535 of its block; only the minimum itself has the
   lowest code, so that what is above zero stays above it */
void ldp_pack(const float *x, int64_t numel, int64_t block, int16_t *codes, float *low, float *step, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < (numel + block - 1) / block; k++) {
        int64_t start = k * block, n = numel - start < block ? numel - start : block;
        const float *v = x + start;
        int16_t *c = codes + start;
        int32_t lo = INT32_MAX, hi = INT32_MIN;
        range_of(v, n, &lo, &hi);
        float l, h;
        finish_range(lo, hi, &l, &h);
        float s = (h - l) / 65535;
        low[k] = l, step[k] = s;
        float inverse = s > 0 ? 1 / s : 0;
        for (int64_t i = 0; i < n; i++) {
            int32_t q = (int32_t)rintf((v[i] - l) * inverse);
            q = q > 65535 ? 65535 : q;
            q = q < 1 && v[i] > l ? 1 : q;
            c[i] = (int16_t)(q - 32768);
        }
    }
}

void ldp_unpack(const int16_t *codes, int64_t numel, int64_t block, const float *low, const float *step, float *x, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < (numel + block - 1) / block; k++) {
        int64_t start = k * block, n = numel - start < block ? numel - start : block;
        float l = low[k], s = step[k];
        for (int64_t i = 0; i < n; i++) x[start + i] = (float)((int32_t)codes[start + i] + 32768) * s + l;
    }
}
