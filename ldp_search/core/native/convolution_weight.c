/* dL/dw of a convolution of 8-bit codes, exact and without columns (native/convolution.py): for each tap a product of the
   gradient and of the input under it, sixteen outputs by sixteen channels at a time, summed over four places at once.

   Codes of x are moved up by 128, as in convolution.c, and what that adds is taken out again. */
#include "fours.h"

#define LONGEST 65536 /* products of an unsigned and a signed byte that 32 bits hold the sum of */

#ifdef HAS_VNNI
/* A sample of g as [block of 16 outputs][row][four places][output][place], zeros beyond its ends; totals: of each output */
static void lay_g(const int8_t *from, const window_t *w, int64_t outputs, laid_t l, int8_t *to, int32_t *totals) {
    for (int64_t b = 0; b < l.g_blocks; b++)
        for (int64_t i = 0; i < w->places[0]; i++)
            for (int64_t f = 0; f < l.fours; f++, to += 64) {
                const int8_t *at = from + (i * w->places[1] + 4 * f) * outputs + 16 * b;
                int64_t n = least(4, w->places[1] - 4 * f), m = least(16, outputs - 16 * b);
                int8_t edge[64] = {0};
                int whole = n == 4 && m == 16;
                if (!whole) for (int64_t q = 0; q < n; q++) memcpy(edge + 16 * q, at + q * outputs, m);
                __m512i four = whole ? interleave(at, outputs) : interleave(edge, 16);
                _mm512_storeu_si512(to, four);
                __m512i sums = _mm512_loadu_si512(totals + 16 * b);
                add_products(&sums, _mm512_set1_epi8(1), four);
                _mm512_storeu_si512(totals + 16 * b, sums);
            }
}

/* 16 outputs x 16 channels of one tap, over n samples. */
static void tap(const uint8_t *x, const int8_t *g, const window_t *w, laid_t l, int64_t n, int64_t x_sample, int64_t g_sample, int32_t *sums) {
    __m512i sum[16];
#pragma GCC unroll 16
    for (int o = 0; o < 16; o++) sum[o] = _mm512_loadu_si512(sums + 16 * o);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < w->places[0]; i++) {
            const uint8_t *codes = x + s * x_sample + i * w->stride[0] * l.fours * 64;
            const int8_t *of_g = g + s * g_sample + i * l.fours * 64;
            for (int64_t f = 0; f < l.fours; f++, codes += 64, of_g += 64) {
                __m512i four = _mm512_loadu_si512(codes);
#pragma GCC unroll 16
                for (int o = 0; o < 16; o++) add_products(&sum[o], four, four_of(of_g + 4 * o));
            }
        }
#pragma GCC unroll 16
    for (int o = 0; o < 16; o++) _mm512_storeu_si512(sums + 16 * o, sum[o]);
}

/* Codes of x at one tap over the places of n samples, added up. */
static void column(const uint8_t *x, const window_t *w, laid_t l, int64_t n, int64_t x_sample, int32_t *sums) {
    __m512i sum = _mm512_loadu_si512(sums);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < w->places[0]; i++)
            for (int64_t f = 0; f < l.fours; f++) {
                int64_t left = least(4, w->places[1] - 4 * f);
                __m512i ones = _mm512_set1_epi32((int32_t)(0x01010101u >> 8 * (4 - left)));
                add_products(&sum, _mm512_loadu_si512(x + s * x_sample + (i * w->stride[0] * l.fours + f) * 64), ones);
            }
    _mm512_storeu_si512(sums, sum);
}

/* What a thread has added up over `places`: [block of 16 channels][tap][output][16 channels], codes of x of each block and tap, of g. */
typedef struct { int32_t *products, *of_x, *of_g; int64_t places; } sums_t;

static void begin(sums_t *s, laid_t l, int64_t taps) {
    int64_t columns = l.x_blocks * taps * 16, outputs = l.g_blocks * 16;
    if (!s->products) s->products = aligned_alloc(64, columns * outputs * 4), s->of_x = aligned_alloc(64, columns * 4), s->of_g = aligned_alloc(64, outputs * 4);
    memset(s->products, 0, columns * outputs * 4), memset(s->of_x, 0, columns * 4), memset(s->of_g, 0, outputs * 4);
    s->places = 0;
}

static void end(sums_t *s) { free(s->products), free(s->of_x), free(s->of_g); }

/* The same of all threads, in numbers that do not overflow, and without the 128 that codes of x were moved up by. */
typedef struct { double *products, *of_x; } total_t;

static void add(total_t *to, sums_t *s, laid_t l, int64_t taps) {
    int64_t columns = l.x_blocks * taps, outputs = l.g_blocks * 16;
    if (!to->products) to->products = calloc(columns * outputs * 16, sizeof(double)), to->of_x = calloc(columns * 16, sizeof(double));
    for (int64_t k = 0; k < columns * outputs; k++)
        for (int64_t c = 16 * k; c < 16 * k + 16; c++) to->products[c] += (double)s->products[c] - 128.0 * s->of_g[k % outputs];
    for (int64_t k = 0; k < columns * 16; k++) to->of_x[k] += (double)s->of_x[k] - 128.0 * s->places;
    begin(s, l, taps);
}

/* gw (outputs, channels, taps) = by_o * products + *of_column * (codes of x) + rest_ot. total: NULL where one thread's sums are all. */
static void finish(const total_t *total, const sums_t *s, const window_t *w, laid_t l, int64_t outputs, const double *by, const double *of_column, const double *rest, float *gw, int threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], rows = l.g_blocks * 16;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t k = 0; k < l.x_blocks * taps; k++) {
            int64_t b = k / taps, t = k % taps, at = (k * rows + o) * 16;
            float *to = gw + (o * w->channels + 16 * b) * taps + t;
            double values[16], scale = by[o], each = *of_column, more = rest[o * taps + t];
            if (total) for (int c = 0; c < 16; c++) values[c] = total->products[at + c] * scale + total->of_x[16 * k + c] * each + more;
            else {
                double moved = 128.0 * s->of_g[o], places = 128.0 * s->places;
                for (int c = 0; c < 16; c++) values[c] = (s->products[at + c] - moved) * scale + (s->of_x[16 * k + c] - places) * each + more;
            }
            for (int c = 0; c < least(16, w->channels - 16 * b); c++) to[c * taps] = (float)values[c];
        }
}

/* dL/dw (outputs, channels, taps) from codes of g and x, whose products are summed over places and samples, as `finish` says.
   A sample has at most LONGEST places. */
void ldp8_convolve_weight(const int8_t *g, const int8_t *x, const window_t *w, int64_t outputs, const double *by, const double *of_column, const double *rest, float *gw, int threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], places = w->places[0] * w->places[1], fours = up(w->places[1], 4) / 4;
    padded_t p = padded_size(w, up(w->channels, 16), (4 * fours - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1);
    laid_t l = {fours, w->kernel[1] * p.height * fours * 64, w->places[0] * fours * 64, p.deep / 16, up(outputs, 16) / 16};
    int64_t x_sample = l.of_x * l.x_blocks, g_sample = l.of_g * l.g_blocks, sums = l.x_blocks * taps * l.g_blocks * 1024;
    int64_t group = least((sums > GROUP ? 4 : 1) * GROUP / x_sample, LONGEST / places); /* many sums are read and written for each group */
    group = group < 1 ? 1 : least(group, up(w->samples, threads) / threads);
    total_t total = {0};
    sums_t only = {0};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *one = aligned_alloc(64, up(p.bytes, 64)), *xs = aligned_alloc(64, group * x_sample);
        int8_t *gs = aligned_alloc(64, group * g_sample);
        sums_t own = {0}, *s = threads > 1 ? &own : &only;
        begin(s, l, taps);
#pragma omp for schedule(static) nowait
        for (int64_t first = 0; first < w->samples; first += group) {
            int64_t n = least(group, w->samples - first);
            if (s->places + n * places > LONGEST)
#pragma omp critical
                add(&total, s, l, taps);
            for (int64_t k = 0; k < n; k++) {
                pad(x + (first + k) * w->height * w->width * w->channels, w, p, one);
                lay_x(one, w, p, l, xs + k * x_sample);
                lay_g(g + (first + k) * places * outputs, w, outputs, l, gs + k * g_sample, s->of_g);
            }
            int32_t *to = s->products, *of_x = s->of_x;
            for (int64_t b = 0; b < l.x_blocks; b++)
                for (int64_t t = 0; t < taps; t++, of_x += 16) {
                    int64_t i = t / w->kernel[1], j = t % w->kernel[1];
                    const uint8_t *at = xs + b * l.of_x + (j * p.height + i * w->dilation[0]) * fours * 64;
                    for (int64_t o = 0; o < l.g_blocks; o++, to += 256) tap(at, gs + o * l.of_g, w, l, n, x_sample, g_sample, to);
                    column(at, w, l, n, x_sample, of_x);
                }
            s->places += n * places;
        }
        if (threads > 1 || total.products)
#pragma omp critical
            add(&total, s, l, taps);
        free(one), free(xs), free(gs), end(&own);
    }
    finish(total.products ? &total : 0, &only, w, l, outputs, by, of_column, rest, gw, threads);
    end(&only), free(total.products), free(total.of_x);
}
#else
void ldp8_convolve_weight(const int8_t *g, const int8_t *x, const window_t *w, int64_t outputs, const double *by, const double *of_column, const double *rest, float *gw, int threads) {}
#endif
