/* Products of 8-bit codes with a scale for each block of values along the sum, as microscaling formats have (native/microscaling.py):
   sums of a block in 32 bits, exact, times its scale, added up in fp32. Here dL/dx: the gradient's blocks lie along its channels.

   A layer of rows is a convolution with one tap. Codes of the gradient are moved up by 128, as in convolution.c; its padding is 0. */
#include "lines.h"

#ifdef HAS_VNNI
#define RESULTS (1 << 17) /* of samples that are worked on together */
#define PLACES 8 /* of a tile at most: sums of two planes and totals take 24 of 32 registers */

/* planes: of the weight, 1 or 2. size: values a block. blocks: of all channels. of_quad: bytes of four channels' weights. */
typedef struct { int64_t taps, planes, size, blocks, of_quad, of_panel; const lines_t *lines; int64_t *code_offsets, *scale_offsets; } plan_t;

/* The offsets: of each tap, to its codes and its scales in a padded sample. */
static plan_t plan_of(const window_t *w, const lines_t *l, int64_t planes, int64_t size) {
    int64_t taps = w->kernel[0] * w->kernel[1], *where = malloc(2 * taps * sizeof *where);
    plan_t p = {taps, planes, size, (w->channels + size - 1) / size, 64 * planes, taps * l->quads * 64 * planes, l, where, where + taps};
    for (int64_t t = 0; t < taps; t++) {
        int64_t i = t / w->kernel[1] * w->dilation[0], j = t % w->kernel[1] * w->dilation[1];
        p.code_offsets[t] = i * l->row + 4 * j, p.scale_offsets[t] = i * p.blocks * l->columns + j;
    }
    return p;
}

/* A sample's scales (height, width, blocks) as [row][block][column], beside `lay_lines`. */
static void lay_scales(const float *scales, const window_t *w, plan_t p, float *to) {
    int64_t columns = p.lines->columns, line = p.blocks * columns;
    memset(to, 0, (w->height + 2 * w->padding[0]) * line * sizeof *to);
    to += w->padding[0] * line + w->padding[1];
    for (int64_t i = 0; i < w->height; i++, to += line)
        for (int64_t j = 0; j < w->width; j++)
            for (int64_t b = 0; b < p.blocks; b++) to[b * columns + j] = *scales++;
}

static int64_t quads_of(plan_t p, int64_t block) { return least(p.size / 4, p.lines->quads - block * (p.size / 4)); }

/* `count` places of 16 outputs. weights: a panel of (taps, quads, planes, 16 outputs, 4 channels). start: of (taps, blocks) what sums begin at. */
static inline __attribute__((always_inline)) void tile(const uint8_t *x, const float *scales, plan_t p, const int8_t *weights, const int32_t *start,
        __m512 by, float *out, int64_t step, __mmask16 there, const int count, const int planes) {
    __m512 total[PLACES];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) total[r] = _mm512_setzero_ps();
    for (int64_t t = 0; t < p.taps; t++) {
        const uint8_t *at = x + p.code_offsets[t];
        const float *scale = scales + p.scale_offsets[t];
        for (int64_t b = 0; b < p.blocks; b++, start += 16, scale += p.lines->columns) {
            __m512i low[PLACES], high[PLACES];
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) low[r] = _mm512_loadu_si512(start), high[r] = _mm512_setzero_si512();
            for (int64_t q = quads_of(p, b); q > 0; q--, weights += 64 * planes, at += p.lines->line) {
                __m512i left = _mm512_loadu_si512(weights), right = planes > 1 ? _mm512_loadu_si512(weights + 64) : left;
#pragma GCC unroll 8
                for (int r = 0; r < count; r++) {
                    __m512i codes = four_of(at + 4 * r);
                    add_products(&low[r], codes, left);
                    if (planes > 1) add_products(&high[r], codes, right);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) {
                __m512i sum = planes > 1 ? _mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]) : low[r];
                total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale[r]), total[r]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) _mm512_mask_storeu_ps(out + r * step, there, _mm512_mul_ps(total[r], by));
}

/* A row of places, in tiles; the last one lies over the one before where it would not be full. */
static void line(const uint8_t *x, const float *scales, plan_t p, int64_t places, const int8_t *weights, const int32_t *start, __m512 by, float *out,
        int64_t step, __mmask16 there) {
    static const int sizes[] = {8, 7, 4, 1};
    int size = 1;
    int64_t lowest = INT64_MAX;
    for (int i = 0; i < 4; i++) {
        int64_t worked = up(places, sizes[i]) + (sizes[i] < 7 ? places / 4 : 0); /* small ones load a weight for little */
        if (sizes[i] <= places && worked < lowest) lowest = worked, size = sizes[i];
    }
#define TILE(count, planes) tile(x + 4 * first, scales + first, p, weights, start, by, out + first * step, step, there, count, planes)
#define TILES(count) case count: \
    for (int64_t q = 0; q < places; q += count) { \
        int64_t first = least(q, places - count); \
        if (p.planes > 1) TILE(count, 2); else TILE(count, 1); \
    } \
    break;
    switch (size) { TILES(8) TILES(7) TILES(4) TILES(1) }
#undef TILES
#undef TILE
}

/* A weight's plane into its place of all panels; where outputs follow one another in memory, sixteen at once. */
static void pack_plane(weight_t v, plan_t p, int64_t channels, int64_t outputs, int8_t *to) {
    for (int64_t o = 0; o < outputs;) {
        int beside = p.taps == 1 && v.by_output == 1 && o % 16 == 0 && o + 16 <= outputs;
        for (int64_t c = 0; c < channels; c += 4) {
            int8_t *at = to + o / 16 * p.of_panel + c / 4 * p.of_quad + o % 16 * 4;
            if (beside && c + 4 <= channels) _mm512_storeu_si512(at, interleave(v.codes + c * v.by_channel + o, v.by_channel));
            else for (int64_t k = 0; k < (beside ? 16 : 1); k++) pack_quad(v, p.taps, c, o + k, channels, p.lines->quads * p.of_quad, at + 4 * k);
        }
        o += beside ? 16 : 1;
    }
}

/* What sums of a panel's blocks begin at: less the 128 that each code is moved up by. */
static void find_starts(const int8_t *weights, plan_t p, int32_t *start) {
    for (int64_t k = 0; k < p.taps * p.blocks; k++, start += 16) {
        __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int64_t q = quads_of(p, k % p.blocks); q > 0; q--)
            for (int64_t plane = 0; plane < p.planes; plane++, weights += 64) add_products(&sums[plane], _mm512_set1_epi8(1), _mm512_loadu_si512(weights));
        __m512i all = _mm512_add_epi32(sums[0], _mm512_slli_epi32(sums[1], 8));
        _mm512_storeu_si512(start, begin_at(all));
    }
}

/* The window of a sample: of the last one as many columns as there are. */
static window_t window_of(const window_t *w, int64_t sample, int64_t last_width) {
    window_t own = *w;
    if (sample == w->samples - 1) own.places[1] -= own.width - last_width, own.width = last_width;
    return own;
}

/* out (samples * places, outputs) = by * sums of scaled products of g (samples, height, width, channels) with the planes of a weight: the low one,
   and where there are two 256 times the high one. scales: (samples, height, width, blocks of `size`). last_width: columns of the last sample. */
void ldp8_scaled_products(const int8_t *g, const float *scales, const window_t *w, const weight_t *weight, int64_t planes, int64_t size,
        int64_t last_width, int64_t outputs, const float *by, float *out, int threads) {
    lines_t l = lines_of(w);
    plan_t p = plan_of(w, &l, planes, size);
    int64_t panels = up(outputs, 16) / 16, places = w->places[0] * w->places[1], sample = w->height * w->width, starts = p.taps * p.blocks * 16;
    int64_t of_scales = up((w->height + 2 * w->padding[0]) * p.blocks * l.columns, 16), group = least(GROUP / l.bytes, up(w->samples, threads) / threads);
    group = least(group, RESULTS / (places * outputs)); /* panels write next to each other: before that has left the cache */
    int8_t *packed = aligned_alloc(64, panels * p.of_panel);
    int32_t *start = aligned_alloc(64, panels * starts * sizeof *start);
    memset(packed, 0, panels * p.of_panel);
    for (int64_t k = 0; k < planes; k++) pack_plane(weight[k], p, w->channels, outputs, packed + 64 * k);
    for (int64_t k = 0; k < panels; k++) find_starts(packed + k * p.of_panel, p, start + k * starts);
    if (group < 1) group = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *codes = aligned_alloc(64, group * l.bytes);
        float *factors = aligned_alloc(64, group * of_scales * sizeof *factors);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < w->samples; first += group) {
            int64_t n = least(group, w->samples - first);
            for (int64_t s = 0; s < n; s++) {
                window_t own = window_of(w, first + s, last_width);
                lay_lines(g + (first + s) * sample * w->channels, &own, l, codes + s * l.bytes);
                lay_scales(scales + (first + s) * sample * p.blocks, &own, p, factors + s * of_scales);
            }
            for (int64_t o = 0; o < panels; o++)
                for (int64_t k = 0; k < n * w->places[0]; k++) {
                    int64_t s = k / w->places[0], i = k % w->places[0];
                    window_t own = window_of(w, first + s, last_width);
                    __mmask16 there = (__mmask16)((1u << least(16, outputs - 16 * o)) - 1);
                    line(codes + s * l.bytes + i * l.row, factors + s * of_scales + i * p.blocks * l.columns, p, own.places[1], packed + o * p.of_panel,
                        start + o * starts, _mm512_set1_ps(*by), out + ((first + s) * places + i * own.places[1]) * outputs + 16 * o, outputs, there);
                }
        }
        free(codes), free(factors);
    }
    free(packed), free(start), free(p.code_offsets);
}
#else
#include "window.h"
void ldp8_scaled_products(const int8_t *g, const float *scales, const window_t *w, const void *weight, int64_t planes, int64_t size,
        int64_t last_width, int64_t outputs, const float *by, float *out, int threads) {}
#endif
