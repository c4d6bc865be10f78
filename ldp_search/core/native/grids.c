/* Grids of the built-in quantizers in closed form: range, moving average, scale and its slope in the bits in one call, where the
   formulas of quantizers.py take some thirty operations on tensors of a few elements, forward and backward. */
#include <math.h>
#include <stdint.h>

#define SMALLEST 1e-30f /* quantizers.SMALLEST_SCALE */
#define LN2 0.69314718055994531

enum { MINMAX, SYMMETRIC };
typedef struct { int64_t outer, channels, inner; } shape_t;

void ldp_measure(const void *x, int type, shape_t s, float *low, float *high, float *spread, int threads);

static inline float largest(float a, float b) { return a > b || a != a ? a : b; } /* a NaN stays one */

/* A tensor's own grid. ranges: a row (low, high, spread, mass) of moving averages that takes part in `momentum` of its range, or
   NULL. low: the offset of MINMAX, and written by SYMMETRIC too. slope: dscale/dbits. */
void ldp_grid(const void *x, int type, shape_t s, int form, const float *bits, float *ranges, float momentum, float *scale,
        float *low, float *slope, int threads) {
    float *high = slope; /* until its value is used */
    ldp_measure(x, type, s, low, high, 0, threads);
    if (ranges && isfinite(*low) && isfinite(*high)) { /* one broken batch must not stay in an average */
        float now[4] = {*low, *high, *high, 1};
        for (int i = 0; i < 4; i++) ranges[i] += momentum * (now[i] - ranges[i]);
    }
    float whole = exp2f(*bits), half = exp2f(*bits - 1);
    for (int64_t c = 0; c < s.channels; c++) {
        float levels = form == SYMMETRIC && low[c] < 0 ? half : whole;
        float range = form == SYMMETRIC ? largest(-low[c], high[c]) : high[c] - low[c], value = range / (levels - 1);
        scale[c] = value < SMALLEST ? SMALLEST : value;
        slope[c] = value >= SMALLEST ? (float)(-LN2 * levels / (levels - 1) * value) : 0;
    }
}

/* Codes that start at zero, moved by half of their range: (scale * (code - shift) + moved) are the same values */
void ldp_shift(const float *bits, const float *scale, const float *offset, int64_t channels, float *shift, float *moved) {
    *shift = exp2f(*bits - 1);
    for (int64_t c = 0; c < channels; c++) moved[c] = *shift * scale[c] + offset[c];
}

/* dL/dbits (weight, input, gradient) from dL/dscale of both operands; NULL: none */
void ldp_bits_gradient(const float *w, const float *w_slope, int64_t channels, const float *x, const float *x_slope, float *out) {
    double sum = 0;
    if (w) for (int64_t c = 0; c < channels; c++) sum += (double)(w[c] * w_slope[c]);
    out[0] = (float)sum, out[1] = x ? *x * *x_slope : 0, out[2] = 0;
}
