/* dL/dw of 8-bit codes where the gradient has a scale for each block of places of a sample (native/microscaling.py): for each tap a
   product of the gradient and of the input under it, sixteen outputs by sixteen channels at a time, exact in 32 bits within a block. */
#include "fours.h"

#ifdef HAS_VNNI
/* Where a block of a sample's places lies among the fours of its rows: bytes to the first one of x, how many are left of that row, and how many
   there are. The four at the end of a block belongs to the next one too, where that begins within it. */
typedef struct { int64_t places, at, of_row, fours; } place_t;

/* Of all blocks of `size` places; the number of fours that are laid. */
static int64_t find_places(const window_t *w, int64_t row, int64_t size, int64_t blocks, place_t *to) {
    int64_t width = w->places[1], all = w->places[0] * width, laid = 0;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * size, last = least(first + size, all) - 1, four = first % width / 4;
        int64_t n = last / width * row + last % width / 4 - (first / width * row + four) + 1;
        to[b] = (place_t){last - first + 1, (first / width * w->stride[0] * row + four) * 64, row - four, n};
        laid += n;
    }
    return laid;
}

typedef struct { int32_t start[16]; float scale[16]; } block_t; /* of sixteen outputs: what sums begin at, less the 128 that codes of x are moved up by */

/* A block of g, sixteen outputs of it, as fours [output][place]: zeros where a four reaches beyond the block, its row or the outputs. from: its
   first place, of column `column`; m: outputs. The sum of all is added up. */
static __m512i lay_block(const int8_t *from, place_t p, int64_t column, int64_t width, int64_t outputs, int64_t m, int8_t *to) {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t left = p.places; left > 0; to += 64) {
        int64_t skip = column % 4, n = least(least(4 - skip, width - column), left);
        int8_t edge[64] = {0};
        int whole = n == 4 && m == 16;
        if (!whole) for (int64_t q = 0; q < n; q++) memcpy(edge + 16 * (skip + q), from + q * outputs, m);
        __m512i four = whole ? interleave(from, outputs) : interleave(edge, 16);
        _mm512_storeu_si512(to, four);
        add_products(&sums, _mm512_set1_epi8(1), four);
        from += n * outputs, left -= n, column += n;
        if (column == width) column = 0;
    }
    return sums;
}

/* A sample of g as [block of 16 outputs][block of places][four]. scales: (blocks, outputs) */
static void lay_blocks(const int8_t *g, const float *scales, const window_t *w, const place_t *places, int64_t size, int64_t blocks, int64_t outputs, int8_t *to,
        block_t *of_block) {
    for (int64_t o = 0; o < outputs; o += 16)
        for (int64_t b = 0; b < blocks; b++, of_block++) {
            int64_t m = least(16, outputs - o);
            __m512i sums = lay_block(g + b * size * outputs + o, places[b], b * size % w->places[1], w->places[1], outputs, m, to);
            to += 64 * places[b].fours;
            _mm512_storeu_si512(of_block->start, begin_at(sums));
            memset(of_block->scale, 0, sizeof of_block->scale);
            memcpy(of_block->scale, scales + b * outputs + o, m * sizeof(float));
        }
}

/* 16 outputs x 16 channels of one tap of a sample. row: fours of a row; skip: bytes of x from a row's end to the next. */
static void tap(const uint8_t *x, const int8_t *g, const block_t *block, const place_t *places, int64_t blocks, int64_t row, int64_t skip, float *totals) {
    for (int64_t b = 0; b < blocks; b++, block++) {
        const uint8_t *at = x + places[b].at;
        int64_t of_row = places[b].of_row;
        __m512i sum[16];
#pragma GCC unroll 16
        for (int o = 0; o < 16; o++) sum[o] = _mm512_set1_epi32(block->start[o]);
        for (int64_t n = places[b].fours; n > 0; of_row = row, at += skip) {
            int64_t run = least(n, of_row);
            n -= run;
            for (; run > 0; run--, at += 64, g += 64) {
                __m512i four = _mm512_loadu_si512(at);
#pragma GCC unroll 16
                for (int o = 0; o < 16; o++) add_products_by(&sum[o], four, g + 4 * o);
            }
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
   of x: by * sums of scaled products + rest. */
void ldp8_scaled_weight(const int8_t *g, const float *scales, int64_t size, const int8_t *x, const window_t *w, int64_t outputs, const float *by, const float *rest, float *gw, int threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], all = w->places[0] * w->places[1], row = up(w->places[1], 4) / 4, blocks = (all + size - 1) / size;
    padded_t p = padded_size(w, up(w->channels, 16), (4 * row - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1);
    place_t *places = malloc(blocks * sizeof *places);
    laid_t l = {row, w->kernel[1] * p.height * row * 64, find_places(w, row, size, blocks, places) * 64, p.deep / 16, up(outputs, 16) / 16};
    int64_t x_sample = l.of_x * l.x_blocks, g_sample = l.of_g * l.g_blocks, sums = l.x_blocks * taps * l.g_blocks * 256, skip = (w->stride[0] - 1) * row * 64;
    int64_t of_sample = l.g_blocks * blocks, group = least((sums > GROUP / 4 ? 4 : 1) * GROUP / x_sample, up(w->samples, threads) / threads);
    float *total = 0;
    if (group < 1) group = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *one = aligned_alloc(64, up(p.bytes, 64)), *xs = aligned_alloc(64, group * x_sample);
        int8_t *gs = aligned_alloc(64, group * g_sample);
        block_t *of_blocks = malloc(group * of_sample * sizeof *of_blocks);
        float *totals = aligned_alloc(64, sums * sizeof *totals);
        memset(totals, 0, sums * sizeof *totals);
#pragma omp for schedule(static) nowait
        for (int64_t first = 0; first < w->samples; first += group) {
            int64_t n = least(group, w->samples - first);
            for (int64_t k = 0, s = first; k < n; k++, s++) {
                pad(x + s * w->height * w->width * w->channels, w, p, one);
                lay_x(one, w, p, l, xs + k * x_sample);
                lay_blocks(g + s * all * outputs, scales + s * blocks * outputs, w, places, size, blocks, outputs, gs + k * g_sample, of_blocks + k * of_sample);
            }
            float *to = totals;
            for (int64_t b = 0; b < l.x_blocks; b++)
                for (int64_t t = 0; t < taps; t++) {
                    int64_t i = t / w->kernel[1], j = t % w->kernel[1];
                    const uint8_t *at = xs + b * l.of_x + (j * p.height + i * w->dilation[0]) * row * 64;
                    for (int64_t o = 0; o < l.g_blocks; o++, to += 256)
                        for (int64_t k = 0; k < n; k++)
                            tap(at + k * x_sample, gs + k * g_sample + o * l.of_g, of_blocks + k * of_sample + o * blocks, places, blocks, row, skip, to);
                }
        }
#pragma omp critical
        if (!total) total = totals, totals = 0;
        else for (int64_t k = 0; k < sums; k++) total[k] += totals[k];
        free(one), free(xs), free(gs), free(of_blocks), free(totals);
    }
    finish(total, w, l, outputs, *by, rest, gw, threads);
    free(total), free(places);
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
