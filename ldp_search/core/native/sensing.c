/* What a step that senses asks of tensors and samples at every number of bits (native/sensing.py says what each must equal):
   variances of stochastic rounding, and squared errors of rounding. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

#define TINY 0x1p-126f /* of a scale: the smallest normal fp32 */
#define LEVELS 32 /* numbers of bits, at most */

/* -- variances -------------------------------------------------------------------------------------------------------------- */

static inline float largest_in(const float *v, int64_t n) {
    int32_t largest = 0; /* bits of a magnitude: in the order of the magnitudes, a NaN above them all */
    for (int64_t i = 0; i < n; i++) {
        int32_t b;
        memcpy(&b, v + i, 4);
        b &= 0x7fffffff;
        largest = b > largest ? b : largest;
    }
    float f;
    memcpy(&f, &largest, 4);
    return f;
}

static inline float at_least(float scale) { return scale < TINY ? TINY : scale; }

/* sum of f (1 - f), f the fraction of v / scale */
static inline float fractions(const float *v, int64_t n, float scale) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float place = v[i] / scale, f = place - floorf(place);
        sum += f * (1 - f);
    }
    return sum;
}

/* Stretches of memory with a scale each, `size` values or what is left of a row; sums: (levels,), added to. */
static void along_memory(const void *x, int type, int64_t start, int64_t n, int64_t size, const float *most, int64_t levels,
        double *sums) {
    float buffer[BLOCK];
    if (size > BLOCK) { /* one stretch: read twice */
        float largest = 0;
        for (int64_t i = 0; i < n; i += BLOCK) {
            int64_t m = n - i < BLOCK ? n - i : BLOCK;
            float found = largest_in(load(x, type, start + i, m, buffer), m);
            largest = found <= largest ? largest : found;
        }
        for (int64_t i = 0; i < n; i += BLOCK) {
            int64_t m = n - i < BLOCK ? n - i : BLOCK;
            const float *v = load(x, type, start + i, m, buffer);
            for (int64_t l = 0; l < levels; l++) {
                float scale = at_least(largest / most[l]);
                sums[l] += (double)fractions(v, m, scale) * scale * scale;
            }
        }
        return;
    }
    const float *v = load(x, type, start, n, buffer);
    for (int64_t i = 0; i < n; i += size) {
        int64_t m = n - i < size ? n - i : size;
        float largest = largest_in(v + i, m);
        for (int64_t l = 0; l < levels; l++) {
            float scale = at_least(largest / most[l]);
            sums[l] += (double)fractions(v + i, m, scale) * scale * scale;
        }
    }
}

/* A column of `n` neighbours next to each other, each with a scale of its own over `rows` rows of `inner` values. */
static void across_memory(const void *x, int type, int64_t start, int64_t rows, int64_t inner, int64_t n, const float *most,
        int64_t levels, double *sums) {
    float buffer[BLOCK], largest[BLOCK], scale[BLOCK], total[BLOCK];
    memset(largest, 0, n * sizeof *largest);
    for (int64_t r = 0; r < rows; r++) {
        const float *v = load(x, type, start + r * inner, n, buffer);
        for (int64_t i = 0; i < n; i++) { float a = fabsf(v[i]); largest[i] = a <= largest[i] ? largest[i] : a; }
    }
    for (int64_t l = 0; l < levels; l++) {
        for (int64_t i = 0; i < n; i++) scale[i] = at_least(largest[i] / most[l]), total[i] = 0;
        for (int64_t r = 0; r < rows; r++) {
            const float *v = load(x, type, start + r * inner, n, buffer);
            for (int64_t i = 0; i < n; i++) { float place = v[i] / scale[i], f = place - floorf(place); total[i] += f * (1 - f); }
        }
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)total[i] * scale[i] * scale[i];
        sums[l] += sum;
    }
}

/* found: (levels,) the variance of rounding all of x to symmetric grids of so many bits, one for every `size` values along
   s.channels. Sums of parts are added in their order, so that any number of threads finds the same. */
void ldp_total_variances(const void *x, int type, shape_t s, int64_t size, const float *bits, int64_t levels, float *found,
        int threads) {
    float most[LEVELS];
    for (int64_t l = 0; l < levels; l++) most[l] = exp2f(bits[l] - 1) - 1;
    size = size < s.channels ? size : s.channels;
    int across = s.inner > 1;
    if (!across && s.channels % size == 0) s = (shape_t){1, s.outer * s.channels, 1};
    int64_t step = across ? size : size < BLOCK ? BLOCK / size * size : size, width = across ? BLOCK : 1;
    int64_t parts = (s.channels + step - 1) / step, wide = (s.inner + width - 1) / width, count = s.outer * parts * wide;
    double *sums = calloc(count * levels, sizeof *sums);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < count; k++) {
        int64_t first = k / wide % parts * step, n = s.channels - first < step ? s.channels - first : step;
        int64_t from = k % wide * width, columns = s.inner - from < width ? s.inner - from : width;
        int64_t start = (k / wide / parts * s.channels + first) * s.inner + from;
        if (across) across_memory(x, type, start, n, s.inner, columns, most, levels, sums + k * levels);
        else along_memory(x, type, start, n, size, most, levels, sums + k * levels);
    }
    for (int64_t l = 0; l < levels; l++) {
        double sum = 0;
        for (int64_t k = 0; k < count; k++) sum += sums[k * levels + l];
        found[l] = (float)sum;
    }
    free(sums);
}

/* -- errors ----------------------------------------------------------------------------------------------------------------- */

typedef struct { const float *value; int64_t by_level, by_bound, by_channel; } table_t; /* value NULL: none */

static inline float entry(const table_t *t, int64_t l, int64_t b, int64_t c) {
    return t->value[l * t->by_level + b * t->by_bound + c * t->by_channel];
}

static inline __attribute__((always_inline)) float squares(const float *x, int64_t n, float s, float o, float low, float high, int clip) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float v = x[i];
        if (clip) v = v > high ? high : v < low ? low : v;
        float error = rintf((v - o) / s) * s + o - x[i];
        sum += error * error;
    }
    return sum;
}

/* found: (levels, bounds) mean squared error of x (channels, values) on the grid of each; grid: tables of scale, offset, low, high */
void ldp_squared_errors(const float *x, int64_t channels, int64_t values, int64_t levels, int64_t bounds, const table_t *grid,
        float *found, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < levels * bounds; k++) {
        int64_t l = k / bounds, b = k % bounds;
        double sum = 0;
        for (int64_t c = 0; c < channels; c++) {
            float s = entry(grid, l, b, c), o = grid[1].value ? entry(grid + 1, l, b, c) : 0;
            const float *row = x + c * values;
            if (grid[2].value) sum += squares(row, values, s, o, entry(grid + 2, l, b, c), entry(grid + 3, l, b, c), 1);
            else sum += squares(row, values, s, o, 0, 0, 0);
        }
        found[k] = (float)(sum / (double)(channels * values));
    }
}
