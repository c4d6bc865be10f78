/* What products of four channels at a time read: samples as lines of places, and weights; codes of samples are moved up by 128. */
#pragma once
#include <stdlib.h>

#include "vnni.h"
#include "window.h"

#ifdef HAS_VNNI
/* A padded sample as [row][four channels][column][channel], so that neighbouring places lie together: steps of it in bytes. */
typedef struct { int64_t quads, columns, line, row, bytes; } lines_t;

static lines_t lines_of(const window_t *w) {
    lines_t l = {.quads = up(w->channels, 4) / 4, .columns = up(w->width + 2 * w->padding[1], 16)};
    l.line = 4 * l.columns, l.row = l.quads * l.line, l.bytes = (w->height + 2 * w->padding[0]) * l.row;
    return l;
}

static void lay_lines(const int8_t *x, const window_t *w, lines_t l, uint8_t *to) {
    int64_t whole = w->channels / 4, left = w->channels % 4;
    memset(to, 128, l.bytes);
    for (int64_t y = 0; y < w->height; y++) {
        uint32_t *row = (uint32_t *)(to + (y + w->padding[0]) * l.row) + w->padding[1];
        for (int64_t j = 0; j < w->width; j++, x += w->channels) {
            for (int64_t q = 0; q < whole; q++) {
                uint32_t four;
                memcpy(&four, x + 4 * q, 4);
                row[q * l.columns + j] = four ^ 0x80808080u;
            }
            for (int64_t c = 0; c < left; c++) ((uint8_t *)(row + whole * l.columns + j))[c] = (uint8_t)x[4 * whole + c] ^ 0x80;
        }
    }
}

/* A weight of int8 (taps, channels, outputs): element (t, c, o) at codes[t * by_tap + c * by_channel + o * by_output], the last one
   before `end`. turned: its taps in the other order. */
typedef struct { const int8_t *codes, *end; int64_t by_tap, by_channel, by_output; int turned; } weight_t;

/* One output's four channels of all taps into its place of a panel, whose taps are `step` bytes apart. */
static void pack_quad(weight_t v, int64_t taps, int64_t c, int64_t o, int64_t channels, int64_t step, int8_t *to) {
    const int8_t *from = v.codes + c * v.by_channel + o * v.by_output;
    int8_t words[64];
    int whole = c + 4 <= channels;
    if (whole && v.by_tap == 1 && taps <= 16 && v.end - (from + 3 * v.by_channel) >= 16) _mm512_storeu_si512(words, interleave(from, v.by_channel));
    else whole = 0;
    for (int64_t t = 0; t < taps; t++, to += step) {
        int64_t at = v.turned ? taps - 1 - t : t;
        if (whole) memcpy(to, words + 4 * at, 4);
        else for (int64_t d = 0; d < least(4, channels - c); d++) to[d] = from[at * v.by_tap + d * v.by_channel];
    }
}
#endif
