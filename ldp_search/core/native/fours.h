/* What sums over places, four at a time, read: samples of x with four neighbouring places of a channel together; codes of
   x are moved up by 128. */
#pragma once
#include <stdlib.h>

#include "vnni.h"
#include "window.h"

#ifdef HAS_VNNI
typedef struct { int64_t height, width, deep, bytes; } padded_t; /* of one sample; deep: its channels */

static padded_t padded_size(const window_t *w, int64_t deep, int64_t width) {
    padded_t p = {w->height + 2 * w->padding[0], w->width + 2 * w->padding[1], deep, 0};
    if (p.width < width) p.width = width;
    p.bytes = p.height * p.width * deep;
    return p;
}

/* A sample's codes moved up by 128, in its padding and beyond its channels the code 0. */
static void pad(const int8_t *x, const window_t *w, padded_t p, uint8_t *to) {
    int64_t channels = w->channels, line = p.width * p.deep;
    for (int64_t i = 0; i < p.height; i++, to += line) {
        int64_t y = i - w->padding[0];
        int inside = y >= 0 && y < w->height;
        if (!inside || p.deep != channels) memset(to, 128, line);
        if (!inside) continue;
        const int8_t *from = x + y * w->width * channels;
        uint8_t *start = to + w->padding[1] * p.deep;
        if (p.deep == channels) {
            memset(to, 128, start - to);
            for (int64_t k = 0; k < w->width * channels; k++) start[k] = (uint8_t)from[k] ^ 0x80;
            memset(start + w->width * channels, 128, line - (start - to) - w->width * channels);
        } else for (int64_t j = 0; j < w->width; j++)
            for (int64_t c = 0; c < channels; c++) start[j * p.deep + c] = (uint8_t)from[j * channels + c] ^ 0x80;
    }
}

typedef struct { int64_t fours, of_x, of_g, x_blocks, g_blocks; } laid_t; /* groups of four places in a row; bytes a block and sample */

/* A padded sample as [block of 16 channels][column of the kernel][row][four places][channel][place] */
static void lay_x(const uint8_t *from, const window_t *w, padded_t p, laid_t l, uint8_t *to) {
    for (int64_t b = 0; b < l.x_blocks; b++)
        for (int64_t j = 0; j < w->kernel[1]; j++)
            for (int64_t i = 0; i < p.height; i++)
                for (int64_t f = 0; f < l.fours; f++, to += 64) {
                    const uint8_t *at = from + (i * p.width + 4 * f * w->stride[1] + j * w->dilation[1]) * p.deep + 16 * b;
                    _mm512_storeu_si512(to, interleave(at, w->stride[1] * p.deep));
                }
}
#endif
