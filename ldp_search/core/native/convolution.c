/* Convolutions of 8-bit codes with exact 32-bit sums, without columns: forward, and dL/dx (native/convolution.py).

   The instruction multiplies unsigned by signed bytes: codes of x are moved up by 128, and what that adds is taken out again.
   Padding is the code 0. */
#include "lines.h"

#ifdef HAS_VNNI
/* Where the codes begin of each tap and four channels, from a place's first. */
typedef struct { int64_t count, *offsets; } steps_t;

static steps_t steps_of(const window_t *w, lines_t l) {
    steps_t s = {0, malloc(w->kernel[0] * w->kernel[1] * l.quads * sizeof(int64_t))};
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++)
            for (int64_t q = 0; q < l.quads; q++) s.offsets[s.count++] = i * w->dilation[0] * l.row + 4 * j * w->dilation[1] + q * l.line;
    return s;
}

/* `count` places of 16 * `blocks` outputs. weights: panels of (taps, quads, 16 outputs, 4 channels). start: what sums begin at. */
static inline __attribute__((always_inline)) void tile(const uint8_t *x, steps_t steps, const int8_t *weights, int64_t panel,
        const int32_t *start, int32_t *out, int64_t step, int64_t outputs, const int64_t stride, const int count, const int blocks) {
    __m512i sum[16], more[16];
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) sum[r] = _mm512_loadu_si512(start);
#pragma GCC unroll 16
    for (int r = 0; r < count && blocks > 1; r++) more[r] = _mm512_loadu_si512(start + 16);
    for (int64_t k = 0; k < steps.count; k++, weights += 64) {
        const uint8_t *at = x + steps.offsets[k];
        __m512i left = _mm512_loadu_si512(weights), right = blocks > 1 ? _mm512_loadu_si512(weights + panel) : left;
#pragma GCC unroll 16
        for (int r = 0; r < count; r++) {
            __m512i codes = four_of(at + 4 * stride * r);
            add_products(&sum[r], codes, left);
            if (blocks > 1) add_products(&more[r], codes, right);
        }
    }
    __mmask16 first = (__mmask16)((1u << least(16, outputs)) - 1), second = blocks > 1 ? (__mmask16)((1u << least(16, outputs - 16)) - 1) : 0;
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) _mm512_mask_storeu_epi32(out + r * step, first, sum[r]);
#pragma GCC unroll 16
    for (int r = 0; r < count && blocks > 1; r++) _mm512_mask_storeu_epi32(out + r * step + 16, second, more[r]);
}

/* Places of a tile: as many as leave the least of a row over, and as the registers hold. */
static int tile_size(int64_t places, int blocks) {
    static const int sizes[2][6] = {{16, 14, 12, 7, 4, 1}, {12, 8, 7, 4, 2, 1}};
    int found = 1;
    int64_t lowest = INT64_MAX;
    for (int i = 0; i < 6; i++) {
        int size = sizes[blocks - 1][i];
        int64_t worked = up(places, size) + (size < 8 ? places / 8 : 0); /* small ones load a weight for little */
        if (size <= places && worked < lowest) lowest = worked, found = size;
    }
    return found;
}

/* A row of places, in tiles of `size`; the last one lies over the one before where it would not be full. */
static void line(const uint8_t *x, const window_t *w, steps_t steps, int size, const int8_t *weights, int64_t panel, const int32_t *start, int32_t *out, int64_t step, int64_t outputs) {
    int64_t places = w->places[1], stride = w->stride[1];
#define TILE(by, count, blocks) tile(x + 4 * first * stride, steps, weights, panel, start, out + first * step, step, outputs, by, count, blocks)
#define TILES(count, blocks) case count: \
    for (int64_t q = 0; q < places; q += count) { \
        int64_t first = least(q, places - count); \
        if (stride == 1) TILE(1, count, blocks); else TILE(stride, count, blocks); \
    } \
    break;
    if (outputs > 16) switch (size) { TILES(12, 2) TILES(8, 2) TILES(7, 2) TILES(4, 2) TILES(2, 2) TILES(1, 2) }
    else switch (size) { TILES(16, 1) TILES(14, 1) TILES(12, 1) TILES(7, 1) TILES(4, 1) TILES(1, 1) }
#undef TILES
#undef TILE
}

/* Panels of (taps, quads, 16 outputs, 4 channels). start: of each output the sum of its codes, times -128. tap_sums: (outputs,
   taps) sums over channels, or NULL. */
static void pack(weight_t v, int64_t taps, int64_t channels, int64_t outputs, int64_t quads, int8_t *to, int32_t *start, int32_t *tap_sums) {
    int64_t panel = taps * quads * 64;
    memset(to, 0, up(outputs, 32) / 16 * panel);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t q = 0; q < quads; q++) pack_quad(v, taps, 4 * q, o, channels, quads * 64, to + o / 16 * panel + q * 64 + o % 16 * 4);
    for (int64_t o = 0; o < up(outputs, 32); o += 16) {
        __m512i all = _mm512_setzero_si512();
        for (int64_t t = 0; t < taps; t++) {
            __m512i sums = _mm512_setzero_si512();
            for (int64_t q = 0; q < quads; q++, to += 64) add_products(&sums, _mm512_set1_epi8(1), _mm512_loadu_si512(to));
            int32_t each[16];
            _mm512_storeu_si512(each, sums);
            for (int64_t r = 0; tap_sums && r < least(16, outputs - o); r++) tap_sums[(o + r) * taps + t] = each[r];
            all = _mm512_add_epi32(all, sums);
        }
        _mm512_storeu_si512(start + o, begin_at(all));
    }
}

/* Of each place the codes of x under the kernel, added up. sums: room for the columns of all rows. */
static void row_sums(const uint8_t *x, const window_t *w, lines_t l, int32_t *sums, int32_t *out) {
    for (int64_t i = 0; i < w->height + 2 * w->padding[0]; i++)
        for (int64_t j = 0; j < l.columns; j += 16) {
            __m512i sum = _mm512_set1_epi32(-512 * (int32_t)l.quads);
            for (int64_t q = 0; q < l.quads; q++) add_products(&sum, _mm512_loadu_si512(x + i * l.row + q * l.line + 4 * j), _mm512_set1_epi8(1));
            _mm512_storeu_si512(sums + i * l.columns + j, sum);
        }
    for (int64_t i = 0; i < w->places[0]; i++, out += w->places[1]) {
        memset(out, 0, w->places[1] * sizeof *out);
        for (int64_t t = 0; t < w->kernel[0] * w->kernel[1]; t++) {
            int64_t y = i * w->stride[0] + t / w->kernel[1] * w->dilation[0], step = w->stride[1];
            const int32_t *at = sums + y * l.columns + t % w->kernel[1] * w->dilation[1];
            if (step == 1) for (int64_t q = 0; q < w->places[1]; q++) out[q] += at[q];
            else for (int64_t q = 0; q < w->places[1]; q++) out[q] += at[q * step];
        }
    }
}

void ldp8_has_vnni(int32_t *found) {
    __builtin_cpu_init();
    *found = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
}

/* out (samples * places, outputs) of x (samples, height, width, channels). rows: sums of what lies under the kernel; tap_sums: of the
   weight over channels, (outputs, taps); or NULL. */
void ldp8_convolve(const int8_t *x, const window_t *w, const weight_t *weight, int64_t outputs, int32_t *out, int32_t *rows, int32_t *tap_sums, int threads) {
    lines_t l = lines_of(w);
    steps_t steps = steps_of(w, l);
    int64_t taps = w->kernel[0] * w->kernel[1], panel = taps * l.quads * 64, places = w->places[0] * w->places[1];
    int64_t group = least(GROUP / l.bytes, up(w->samples, threads) / threads), sample = w->height * w->width * w->channels;
    int8_t *packed = aligned_alloc(64, up(outputs, 32) / 16 * panel);
    int32_t *start = aligned_alloc(64, up(outputs, 32) * sizeof *start);
    pack(*weight, taps, w->channels, outputs, l.quads, packed, start, tap_sums);
    if (group < 1) group = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *mine = aligned_alloc(64, group * l.bytes);
        int32_t *sums = malloc(l.bytes / l.quads);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < w->samples; first += group) {
            int64_t n = least(group, w->samples - first);
            for (int64_t s = 0; s < n; s++) {
                lay_lines(x + (first + s) * sample, w, l, mine + s * l.bytes);
                if (rows) row_sums(mine + s * l.bytes, w, l, sums, rows + (first + s) * places);
            }
            for (int64_t o = 0; o < outputs; o += 32) {
                int size = tile_size(w->places[1], outputs - o > 16 ? 2 : 1);
                for (int64_t k = 0; k < n * w->places[0]; k++) {
                    int64_t s = k / w->places[0], i = k % w->places[0];
                    int32_t *to = out + ((first + s) * places + i * w->places[1]) * outputs + o;
                    line(mine + s * l.bytes + i * w->stride[0] * l.row, w, steps, size, packed + o / 16 * panel, panel, start + o, to, outputs, outputs - o);
                }
            }
        }
        free(mine), free(sums);
    }
    free(packed), free(start), free(steps.offsets);
}
#else
void ldp8_has_vnni(int32_t *found) { *found = 0; }
void ldp8_convolve(const int8_t *x, const window_t *w, const void *weight, int64_t outputs, int32_t *out, int32_t *rows, int32_t *tap_sums, int threads) {}
#endif
