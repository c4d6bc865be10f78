/* One-pass kernels around products of 8-bit integers (native/int8.py says what each must equal): what comes before one,
   from values to codes, and what comes after it, from 32-bit sums to values. Values are fp32 or bf16 (a `type` argument). */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "bf16.h"
#include "window.h"

#define BLOCK 4096 /* elements; even, so that no packed byte is shared by two threads */
#define CELLS 15
#define OUTSIDE 15
enum { FP32, BF16 };

typedef struct { int64_t outer, channels, inner; } shape_t;

void ldp_measure(const void *x, int type, shape_t s, float *low, float *high, float *spread, int threads);

typedef float __attribute__((may_alias)) value_t; /* sums may be turned into values in place */

static inline void store(void *p, int type, int64_t start, int64_t n, const float *v) {
    if (type == FP32) { value_t *y = (value_t *)p + start; for (int64_t i = 0; i < n; i++) y[i] = v[i]; return; }
    uint16_t *h = (uint16_t *)p + start;
    for (int64_t i = 0; i < n; i++) h[i] = to_bf16(v[i]);
}

/* -- an input: codes, and cells of the rounding error ----------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void input_run(const float *x, int64_t n, float s, float o, float l, float h,
        float shift, int8_t *codes, uint8_t *cells, int clip, int residual) {
    for (int64_t i = 0; i < n; i++) {
        float v = x[i];
        int cut = clip && (v > h || v < l);
        if (clip) v = v > h ? h : v < l ? l : v;
        float place = (v - o) / s, whole = rintf(place);
        float c = whole - shift;
        c = c > 127 ? 127 : c;
        c = c < -128 ? -128 : c;
        codes[i] = (int8_t)(int32_t)c;
        if (residual) {
            int32_t cell = (int32_t)((place - whole + 0.5f) * CELLS);
            cell = cell > CELLS - 1 ? CELLS - 1 : cell;
            cells[i] = (uint8_t)(cut ? OUTSIDE : cell);
        }
    }
}

/* offset, low, high NULL: none. packed NULL: no cells. */
void ldp8_input(const void *x, int type, int64_t numel, const float *scale, const float *offset, const float *low, const float *high,
        const float *shift, int8_t *codes, uint8_t *packed, int threads) {
    float s = *scale, o = offset ? *offset : 0, l = low ? *low : 0, h = high ? *high : 0, t = *shift;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t start = 0; start < numel; start += BLOCK) {
        float buffer[BLOCK];
        uint8_t cells[BLOCK + 1];
        int64_t n = numel - start < BLOCK ? numel - start : BLOCK;
        const float *v = (const float *)x + start;
        if (type == BF16) {
            for (int64_t i = 0; i < n; i++) buffer[i] = from_bf16(((const uint16_t *)x)[start + i]);
            v = buffer;
        }
        int8_t *c = codes + start;
        if (low) {
            if (packed) input_run(v, n, s, o, l, h, t, c, cells, 1, 1); else input_run(v, n, s, o, l, h, t, c, cells, 1, 0);
        } else if (packed) input_run(v, n, s, o, l, h, t, c, cells, 0, 1); else input_run(v, n, s, o, l, h, t, c, cells, 0, 0);
        if (!packed) continue;
        cells[n] = 0;
        for (int64_t i = 0; i < (n + 1) / 2; i++) packed[start / 2 + i] = (uint8_t)(cells[2 * i] | cells[2 * i + 1] << 4);
    }
}

/* -- sums of codes ---------------------------------------------------------------------------------------------------------- */

void ldp8_row_sums(const int8_t *v, int64_t rows, int64_t columns, int32_t *sums, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        int32_t sum = 0;
        for (int64_t j = 0; j < columns; j++) sum += v[i * columns + j];
        sums[i] = sum;
    }
}

void ldp8_column_sums(const int8_t *v, int64_t rows, int64_t columns, int32_t *sums, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t first = 0; first < columns; first += 1024) {
        int32_t sum[1024] = {0};
        int64_t n = columns - first < 1024 ? columns - first : 1024;
        for (int64_t i = 0; i < rows; i++) {
            const int8_t *row = v + i * columns + first;
            for (int64_t j = 0; j < n; j++) sum[j] += row[j];
        }
        memcpy(sums + first, sum, n * sizeof *sums);
    }
}

/* -- from codes to values --------------------------------------------------------------------------------------------------- */

/* y_ij = codes_ij * scale_i + offset; each: scales differ from row to row, else there is one */
void ldp8_floats(const int8_t *codes, float *y, int64_t rows, int64_t columns, const float *scales, int each, const float *offset,
        int threads) {
    float o = *offset;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float s = scales[each ? i : 0];
        for (int64_t j = i * columns; j < (i + 1) * columns; j++) y[j] = (float)codes[j] * s + o;
    }
}

/* -- from sums to values ---------------------------------------------------------------------------------------------------- */

/* y_ij = sums_ij * by_j + (row_i * across_j + column_ij); y may be the memory of sums. column: `period` rows that take turns. */
void ldp8_values(const int32_t *sums, void *y, int type, int64_t rows, int64_t columns, const float *by, const float *row,
        const float *across, const float *column, int64_t period, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t first = 0; first < columns; first += BLOCK) {
            float results[BLOCK];
            int64_t n = columns - first < BLOCK ? columns - first : BLOCK, start = i * columns + first;
            const float *b = by + first, *a = across + first, *c = column + i % period * columns + first;
            for (int64_t j = 0; j < n; j++) results[j] = (float)sums[start + j] * b[j] + (row[i] * a[j] + c[j]);
            store(y, type, start, n, results);
        }
}

/* left_q @ right_q + bias from the sums of products of their codes, and the sums of their codes over the `length` summed over.
   right_scale, right_offset: one a column, or (each 0) one for all. space: 3 * columns + rows. bias NULL: none. */
void ldp8_product(const int32_t *sums, void *y, int type, int64_t rows, int64_t columns, const float *left_scale,
        const float *left_offset, const int32_t *left_sums, const float *right_scale, const float *right_offset, int each,
        const int32_t *right_sums, int64_t length, const float *bias, float *space, int threads) {
    float *by = space, *across = by + columns, *column = across + columns, *row = column + columns;
    float scale = *left_scale, offset = *left_offset;
    for (int64_t j = 0; j < columns; j++) {
        float s = right_scale[each ? j : 0], o = right_offset[each ? j : 0];
        by[j] = scale * s, across[j] = o;
        column[j] = offset * (s * (float)right_sums[j] + (float)length * o) + (bias ? bias[j] : 0);
    }
    for (int64_t i = 0; i < rows; i++) row[i] = scale * (float)left_sums[i];
    ldp8_values(sums, y, type, rows, columns, by, row, across, column, 1, threads);
}

static void unpack(const uint8_t *packed, int64_t start, int64_t n, uint8_t *cells) {
    if (start % 2) { *cells++ = packed[start / 2] >> 4; start++, n--; }
    const uint8_t *p = packed + start / 2;
    for (int64_t i = 0; i < n / 2; i++) cells[2 * i] = p[i] & 15, cells[2 * i + 1] = p[i] >> 4;
    if (n % 2) cells[n - 1] = p[n / 2] & 15;
}

/* gx_ij = (sums_ij, or low_ij + 256 high_ij of sums in two planes side by side, or where they are FP32 what they hold) * scale_i + column_ij, and what packed cells give:
   results = -sum(gx * error) in steps, and of a clipped range sums of gx below and above, where gx becomes 0. packed NULL: gx alone. */
void ldp8_input_gradient(const void *sums, int sums_type, int planes, void *gx, int type, int64_t rows, int64_t columns,
        const float *scales, int each, const float *column, int64_t period, const int8_t *codes, const uint8_t *packed, int clip, float *results, int threads) {
    double error = 0, below = 0, above = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : error, below, above)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t first = 0; first < columns; first += BLOCK) {
            float g[BLOCK], scale = scales[each ? i : 0];
            uint8_t cells[BLOCK];
            int64_t n = columns - first < BLOCK ? columns - first : BLOCK, start = i * columns + first;
            const int32_t *s = (const int32_t *)sums + i * planes * columns + first, *low = s + columns;
            const value_t *values = (const value_t *)sums + start;
            const float *c = column + i % period * columns + first;
            if (sums_type == FP32) for (int64_t j = 0; j < n; j++) g[j] = values[j] * scale + c[j];
            else if (planes == 2) for (int64_t j = 0; j < n; j++) g[j] = ((float)low[j] + 256 * (float)s[j]) * scale + c[j];
            else for (int64_t j = 0; j < n; j++) g[j] = (float)s[j] * scale + c[j];
            if (packed) {
                float e = 0, b = 0, a = 0;
                unpack(packed, start, n, cells);
                if (clip)
#pragma omp simd reduction(+ : a, b)
                    for (int64_t j = 0; j < n; j++) {
                        int cut = cells[j] == OUTSIDE;
                        float lost = cut ? g[j] : 0; /* by itself: gcc 12 sums what a mask of two conditions leaves out */
                        a += codes[start + j] >= 0 ? lost : 0;
                        b += codes[start + j] < 0 ? lost : 0;
                        g[j] = cut ? 0 : g[j];
                    }
#pragma omp simd reduction(+ : e)
                for (int64_t j = 0; j < n; j++) e += g[j] * (float)((int32_t)cells[j] - CELLS / 2);
                error += e, below += b, above += a;
            }
            store(gx, type, start, n, g);
        }
    if (packed) results[0] = (float)(-error / CELLS);
    if (packed && clip) results[1] = (float)below, results[2] = (float)above;
}

/* -- a weight in two planes ------------------------------------------------------------------------------------------------- */

/* round(w / scale) = 256 * high + low of at most `most`; low NULL: in one plane. stride: from row to row of a plane. */
void ldp8_planes(const float *w, int64_t rows, int64_t columns, float most, float *found, int8_t *high, int8_t *low,
        int64_t stride, int threads) {
    float smallest, greatest;
    ldp_measure(w, FP32, (shape_t){1, 1, rows * columns}, &smallest, &greatest, 0, threads);
    float scale = (-smallest > greatest ? -smallest : greatest) / most;
    scale = *found = scale < 0x1p-126f ? 0x1p-126f : scale;
    for (int64_t i = 0; i < rows; i++) {
        const float *v = w + i * columns;
        int8_t *h = high + i * stride, *l = low ? low + i * stride : 0;
        if (!low) { for (int64_t j = 0; j < columns; j++) h[j] = (int8_t)(int32_t)rintf(v[j] / scale); continue; }
        for (int64_t j = 0; j < columns; j++) {
            int32_t whole = (int32_t)rintf(v[j] / scale), top = (whole + 128) >> 8;
            h[j] = (int8_t)top, l[j] = (int8_t)(whole - top * 256);
        }
    }
}

/* -- columns of a convolution ----------------------------------------------------------------------------------------------- */

/* out: a row for each place, (taps, channels) of x (samples, height, width, channels); zeros in the padding */
void ldp8_columns(const int8_t *x, const window_t *w, int8_t *out, int threads) {
    int64_t line = w->kernel[1] * w->channels, row = w->kernel[0] * line;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t k = 0; k < w->samples * w->places[0]; k++) {
        int64_t sample = k / w->places[0], first = k % w->places[0] * w->stride[0] - w->padding[0];
        for (int64_t i = 0; i < w->kernel[0]; i++) {
            int64_t y = first + i * w->dilation[0];
            const int8_t *from = x + (sample * w->height + y) * w->width * w->channels;
            int8_t *to = out + k * w->places[1] * row + i * line;
            for (int64_t p = 0; p < w->places[1]; p++, to += row) {
                int64_t left = p * w->stride[1] - w->padding[1], right = left + (w->kernel[1] - 1) * w->dilation[1];
                if (y < 0 || y >= w->height) { memset(to, 0, line); continue; }
                if (w->dilation[1] == 1 && left >= 0 && right < w->width) { memcpy(to, from + left * w->channels, line); continue; }
                for (int64_t j = 0; j < w->kernel[1]; j++) {
                    int64_t at = left + j * w->dilation[1];
                    if (at < 0 || at >= w->width) memset(to + j * w->channels, 0, w->channels);
                    else memcpy(to + j * w->channels, from + at * w->channels, w->channels);
                }
            }
        }
    }
}
