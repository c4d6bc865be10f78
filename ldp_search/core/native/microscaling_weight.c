/* dL/dw of 8-bit codes where the gradient has a scale for each block of places of a sample (native/microscaling.py): for each tap a
   product of the gradient and of the input under it, sixteen outputs by sixteen channels at a time, exact in 32 bits within a block. */
#include "fours.h"

#ifdef HAS_VNNI
typedef struct { int32_t start[16]; float scale[16]; } block_t; /* of sixteen outputs: what sums begin at, less the 128 that codes of x are moved up by */

/* blocks of a sample's g as `lay_g` laid it; scales: (blocks, outputs) */
static void lay_blocks(const int8_t *g, const float *scales, laid_t l, int64_t fours, int64_t size, int64_t blocks, int64_t outputs, block_t *to) {
    for (int64_t o = 0; o < l.g_blocks; o++)
        for (int64_t b = 0; b < blocks; b++, to++) {
            __m512i sums = _mm512_setzero_si512();
            for (int64_t f = least(size, fours - b * size); f > 0; f--, g += 64) add_products(&sums, _mm512_set1_epi8(1), _mm512_loadu_si512(g));
            _mm512_storeu_si512(to->start, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums), 7));
            memset(to->scale, 0, sizeof to->scale);
            memcpy(to->scale, scales + b * outputs + 16 * o, least(16, outputs - 16 * o) * sizeof(float));
        }
}

/* 16 outputs x 16 channels of one tap of a sample, in blocks of `size` fours. row: fours of a row; skip: bytes of x from a row's end to the next. */
static void tap(const uint8_t *x, const int8_t *g, const block_t *block, int64_t fours, int64_t size, int64_t row, int64_t skip, float *totals) {
    int64_t of_row = row;
    for (int64_t left = fours; left > 0; left -= size, block++) {
        __m512i sum[16];
#pragma GCC unroll 16
        for (int o = 0; o < 16; o++) sum[o] = _mm512_set1_epi32(block->start[o]);
        for (int64_t n = least(size, left); n > 0;) {
            int64_t run = least(n, of_row);
            n -= run, of_row -= run;
            for (; run > 0; run--, x += 64, g += 64) {
                __m512i four = _mm512_loadu_si512(x);
#pragma GCC unroll 16
                for (int o = 0; o < 16; o++) add_products_by(&sum[o], four, g + 4 * o);
            }
            if (!of_row) of_row = row, x += skip;
        }
#pragma GCC unroll 16
        for (int o = 0; o < 16; o++) {
            __m512 total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[o]), _mm512_set1_ps(block->scale[o]), _mm512_loadu_ps(totals + 16 * o));
            _mm512_storeu_ps(totals + 16 * o, total);
        }
    }
}

/* gw (outputs, channels, taps) = by * totals [block of 16 channels][tap][output][channel] + rest (outputs, taps) */
static void finish(const float *totals, const window_t *w, laid_t l, int64_t outputs, float by, const float *rest, float *gw, int threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], rows = l.g_blocks * 16;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t k = 0; k < l.x_blocks * taps; k++) {
            int64_t b = k / taps, t = k % taps;
            const float *from = totals + (k * rows + o) * 16;
            float *to = gw + (o * w->channels + 16 * b) * taps + t;
            for (int c = 0; c < least(16, w->channels - 16 * b); c++) to[c * taps] = from[c] * by + rest[o * taps + t];
        }
}

/* dL/dw (outputs, channels, taps) from codes of g (samples, places, outputs), its scales (samples, blocks of `size` places, outputs) and codes
   of x: by * sums of scaled products + rest. A row of places, or `size`, is a multiple of four, or there is one row. */
void ldp8_scaled_weight(const int8_t *g, const float *scales, int64_t size, const int8_t *x, const window_t *w, int64_t outputs, const float *by, const float *rest, float *gw, int threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], places = w->places[0] * w->places[1], row = up(w->places[1], 4) / 4, fours = w->places[0] * row;
    padded_t p = padded_size(w, up(w->channels, 16), (4 * row - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1);
    laid_t l = {row, w->kernel[1] * p.height * row * 64, fours * 64, p.deep / 16, up(outputs, 16) / 16};
    int64_t x_sample = l.of_x * l.x_blocks, g_sample = l.of_g * l.g_blocks, sums = l.x_blocks * taps * l.g_blocks * 256, skip = (w->stride[0] - 1) * row * 64;
    int64_t blocks = (places + size - 1) / size, group = least((sums > GROUP / 4 ? 4 : 1) * GROUP / x_sample, up(w->samples, threads) / threads);
    float *total = 0;
    if (group < 1) group = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *one = aligned_alloc(64, up(p.bytes, 64)), *xs = aligned_alloc(64, group * x_sample);
        int8_t *gs = aligned_alloc(64, group * g_sample);
        int32_t *unused = aligned_alloc(64, l.g_blocks * 64);
        block_t *of_blocks = malloc(group * l.g_blocks * blocks * sizeof *of_blocks);
        float *totals = aligned_alloc(64, sums * sizeof *totals);
        memset(totals, 0, sums * sizeof *totals), memset(unused, 0, l.g_blocks * 64);
#pragma omp for schedule(static) nowait
        for (int64_t first = 0; first < w->samples; first += group) {
            int64_t n = least(group, w->samples - first);
            for (int64_t k = 0; k < n; k++) {
                pad(x + (first + k) * w->height * w->width * w->channels, w, p, one);
                lay_x(one, w, p, l, xs + k * x_sample);
                lay_g(g + (first + k) * places * outputs, w, outputs, l, gs + k * g_sample, unused);
                lay_blocks(gs + k * g_sample, scales + (first + k) * blocks * outputs, l, fours, size / 4, blocks, outputs, of_blocks + k * l.g_blocks * blocks);
            }
            float *to = totals;
            for (int64_t b = 0; b < l.x_blocks; b++)
                for (int64_t t = 0; t < taps; t++) {
                    int64_t i = t / w->kernel[1], j = t % w->kernel[1];
                    const uint8_t *at = xs + b * l.of_x + (j * p.height + i * w->dilation[0]) * row * 64;
                    for (int64_t o = 0; o < l.g_blocks; o++, to += 256)
                        for (int64_t k = 0; k < n; k++)
                            tap(at + k * x_sample, gs + k * g_sample + o * l.of_g, of_blocks + (k * l.g_blocks + o) * blocks, fours, size / 4, row, skip, to);
                }
        }
#pragma omp critical
        if (!total) total = totals, totals = 0;
        else for (int64_t k = 0; k < sums; k++) total[k] += totals[k];
        free(one), free(xs), free(gs), free(unused), free(of_blocks), free(totals);
    }
    finish(total, w, l, outputs, *by, rest, gw, threads);
    free(total);
}

/* of_places (places, outputs): the gradient added up over samples, block by block, so that the sums stay in the cache. */
void ldp8_scaled_sums(const int8_t *g, const float *scales, int64_t size, int64_t samples, int64_t places, int64_t outputs, float *of_places, int threads) {
    int64_t blocks = (places + size - 1) / size;
    memset(of_places, 0, places * outputs * sizeof *of_places);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t s = 0; s < samples; s++) {
            const float *scale = scales + (s * blocks + b) * outputs;
            const int8_t *codes = g + (s * places + b * size) * outputs;
            float *to = of_places + b * size * outputs;
            for (int64_t q = least(size, places - b * size); q > 0; q--, codes += outputs, to += outputs) {
                int64_t o = 0;
                for (; o + 16 <= outputs; o += 16) {
                    __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(codes + o))));
                    _mm512_storeu_ps(to + o, _mm512_fmadd_ps(values, _mm512_loadu_ps(scale + o), _mm512_loadu_ps(to + o)));
                }
                for (; o < outputs; o++) to[o] += (float)codes[o] * scale[o];
            }
        }
}
#else
#include "window.h"
void ldp8_scaled_weight(const int8_t *g, const float *scales, int64_t size, const int8_t *x, const window_t *w, int64_t outputs, const float *by, const float *rest, float *gw, int threads) {}
void ldp8_scaled_sums(const int8_t *g, const float *scales, int64_t size, int64_t samples, int64_t places, int64_t outputs, float *of_places, int threads) {}
#endif
