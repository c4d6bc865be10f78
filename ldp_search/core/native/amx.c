/* Products of 8-bit integers on the tiles of AMX (native/multiply.py says what each must equal), with exact 32-bit sums.

   A tile holds 16 rows of 64 bytes. A block of the result is 32 x 32: four tiles of sums, two of A and two of B, so that each
   loaded tile serves twice. B is packed before: panels of 32 columns, in each of which four rows lie interleaved, as the
   instruction wants them. Of A, rows are read where they lie, but for the ends of a row and of the matrix. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AMX_INT8__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM, of the state 18: tiles */
#define PANEL 32

typedef struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } __attribute__((packed, aligned(64))) tiles_t;

static void configure(void) {
    tiles_t t = {.palette = 1};
    for (int i = 0; i < 8; i++) t.bytes[i] = 64, t.rows[i] = 16;
    _tile_loadconfig(&t);
}

/* -- packing ---------------------------------------------------------------------------------------------------------------- */

/* B (depth, columns), whose element (k, j) lies at b[k * by_row + j * by_column]; depth padded with zeros to 64, columns to 32. */
static void pack(const int8_t *b, int64_t depth, int64_t columns, int64_t by_row, int64_t by_column, int8_t *to, int64_t panel) {
    int64_t deep = (depth + 63) / 64 * 64, first = panel * PANEL, n = columns - first < PANEL ? columns - first : PANEL;
    int8_t *out = to + panel * deep * PANEL;
    if (n < PANEL || depth < deep) memset(out, 0, deep * PANEL);
    b += first * by_column;
    if (by_column == 1 && n == PANEL) { /* rows of 32 bytes, four at a time */
        int64_t k = 0;
        for (; k + 4 <= depth; k += 4) {
            __m256i r0 = _mm256_loadu_si256((const void *)(b + k * by_row)), r1 = _mm256_loadu_si256((const void *)(b + (k + 1) * by_row));
            __m256i r2 = _mm256_loadu_si256((const void *)(b + (k + 2) * by_row)), r3 = _mm256_loadu_si256((const void *)(b + (k + 3) * by_row));
            __m256i a = _mm256_unpacklo_epi8(r0, r1), c = _mm256_unpackhi_epi8(r0, r1);
            __m256i d = _mm256_unpacklo_epi8(r2, r3), e = _mm256_unpackhi_epi8(r2, r3);
            __m256i p = _mm256_unpacklo_epi16(a, d), q = _mm256_unpackhi_epi16(a, d);
            __m256i r = _mm256_unpacklo_epi16(c, e), s = _mm256_unpackhi_epi16(c, e);
            /* columns 0-3 and 16-19 lie in p, 4-7 and 20-23 in q, and so on; two tiles of 16 columns, 64 bytes a row each */
            __m128i *left = (__m128i *)(out + (k / 64 * 2) * 1024 + k % 64 / 4 * 64), *right = left + 64;
            left[0] = _mm256_castsi256_si128(p), left[1] = _mm256_castsi256_si128(q);
            left[2] = _mm256_castsi256_si128(r), left[3] = _mm256_castsi256_si128(s);
            right[0] = _mm256_extracti128_si256(p, 1), right[1] = _mm256_extracti128_si256(q, 1);
            right[2] = _mm256_extracti128_si256(r, 1), right[3] = _mm256_extracti128_si256(s, 1);
        }
        for (; k < depth; k++)
            for (int64_t j = 0; j < PANEL; j++) out[(k / 64 * 2 + j / 16) * 1024 + k % 64 / 4 * 64 + j % 16 * 4 + k % 4] = b[k * by_row + j];
        return;
    }
    if (by_row == 1) { /* columns are stretches of memory: four of their bytes are one word of the tile */
        for (int64_t j = 0; j < n; j++) {
            int8_t *column = out + j / 16 * 1024 + j % 16 * 4;
            const int8_t *from = b + j * by_column;
            int64_t k = 0;
            for (; k + 4 <= depth; k += 4) memcpy(column + k / 64 * 2048 + k % 64 / 4 * 64, from + k, 4);
            for (; k < depth; k++) column[k / 64 * 2048 + k % 64 / 4 * 64 + k % 4] = from[k];
        }
        return;
    }
    for (int64_t k = 0; k < depth; k++)
        for (int64_t j = 0; j < n; j++)
            out[(k / 64 * 2 + j / 16) * 1024 + k % 64 / 4 * 64 + j % 16 * 4 + k % 4] = b[k * by_row + j * by_column];
}

/* A 16 x 16 block of bytes turned over. */
static inline void turn16(const int8_t *from, int64_t step, int8_t *to, int64_t to_step) {
    __m128i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm_loadu_si128((const void *)(from + i * step));
    for (int i = 0; i < 8; i++) t[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]), t[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
    for (int i = 0; i < 8; i++) r[2 * i] = _mm_unpacklo_epi8(t[i], t[i + 8]), r[2 * i + 1] = _mm_unpackhi_epi8(t[i], t[i + 8]);
    for (int i = 0; i < 8; i++) t[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]), t[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
    for (int i = 0; i < 8; i++) r[2 * i] = _mm_unpacklo_epi8(t[i], t[i + 8]), r[2 * i + 1] = _mm_unpackhi_epi8(t[i], t[i + 8]);
    for (int i = 0; i < 16; i++) _mm_storeu_si128((void *)(to + i * to_step), r[i]);
}

/* 32 rows of A from `first` on, (32, deep) with zeros beyond its ends; A's element (i, k) lies at a[i * by_row + k * by_column]. */
static void gather(const int8_t *a, int64_t rows, int64_t depth, int64_t by_row, int64_t by_column, int64_t first, int8_t *to) {
    int64_t deep = (depth + 63) / 64 * 64, n = rows - first < 32 ? rows - first : 32;
    if (n < 32 || depth < deep) memset(to, 0, 32 * deep);
    a += first * by_row;
    if (by_column == 1) { for (int64_t i = 0; i < n; i++) memcpy(to + i * deep, a + i * by_row, depth); return; }
    int64_t i = 0, even = by_row == 1 ? depth / 16 * 16 : 0;
    for (; i + 16 <= n && by_row == 1; i += 16) for (int64_t k = 0; k < even; k += 16) turn16(a + i + k * by_column, by_column, to + i * deep + k, deep);
    for (int64_t k = even; k < depth; k++) for (int64_t j = 0; j < i; j++) to[j * deep + k] = a[j * by_row + k * by_column];
    for (; i < n; i++) for (int64_t k = 0; k < depth; k++) to[i * deep + k] = a[i * by_row + k * by_column];
}

/* -- products --------------------------------------------------------------------------------------------------------------- */

/* 32 x 32 sums at c, rows of `step`; half: the upper 16 rows alone, narrow: the left 16 columns alone. */
static inline __attribute__((always_inline)) void block(const int8_t *a, int64_t a_step, const int8_t *b, int64_t deep, int32_t *c, int64_t step, int half, int narrow) {
    const int8_t *lower = a + 16 * a_step;
    _tile_zero(0);
    if (!narrow) _tile_zero(1);
    if (!half) { _tile_zero(2); if (!narrow) _tile_zero(3); }
    for (int64_t k = 0; k < deep; k += 64, b += 2048) {
        _tile_loadd(4, a + k, a_step);
        _tile_loadd(6, b, 64);
        _tile_dpbssd(0, 4, 6);
        if (!narrow) { _tile_loadd(7, b + 1024, 64); _tile_dpbssd(1, 4, 7); }
        if (half) continue;
        _tile_loadd(5, lower + k, a_step);
        _tile_dpbssd(2, 5, 6);
        if (!narrow) _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, c, step * 4);
    if (!narrow) _tile_stored(1, c + 16, step * 4);
    if (half) return;
    _tile_stored(2, c + 16 * step, step * 4);
    if (!narrow) _tile_stored(3, c + 16 * step + 16, step * 4);
}

static void blocks(const int8_t *a, int64_t a_step, const int8_t *b, int64_t deep, int64_t rows, int64_t columns, int32_t *c, int64_t step) {
    int half = rows <= 16;
    for (int64_t j = 0; j < columns; j += PANEL, b += deep * PANEL) {
        int64_t n = columns - j < PANEL ? columns - j : PANEL;
        int narrow = n <= 16, whole = rows == (half ? 16 : 32) && n == (narrow ? 16 : PANEL);
        int32_t edge[32 * PANEL], *to = whole ? c + j : edge;
        int64_t to_step = whole ? step : PANEL;
        if (half) { if (narrow) block(a, a_step, b, deep, to, to_step, 1, 1); else block(a, a_step, b, deep, to, to_step, 1, 0); }
        else if (narrow) block(a, a_step, b, deep, to, to_step, 0, 1);
        else block(a, a_step, b, deep, to, to_step, 0, 0);
        if (!whole) for (int64_t i = 0; i < rows; i++) memcpy(c + i * step + j, edge + i * PANEL, n * sizeof *c);
    }
}

/* Whether this processor has tiles, and the process may use them. */
void ldp8_has_tiles(int32_t *found) {
    __builtin_cpu_init();
    *found = __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, PERMISSION, 18) == 0;
}

/* c (rows, columns) = a @ b. Strides of a and of b: from row to row, from column to column. */
void ldp8_multiply(const int8_t *a, int64_t a_row, int64_t a_column, const int8_t *b, int64_t b_row, int64_t b_column, int64_t rows,
        int64_t depth, int64_t columns, int32_t *c, int threads) {
    int64_t deep = (depth + 63) / 64 * 64, panels = (columns + PANEL - 1) / PANEL;
    int8_t *packed = aligned_alloc(64, panels * deep * PANEL);
    int in_place = a_column == 1 && deep == depth;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack(b, depth, columns, b_row, b_column, packed, p);
        int8_t *mine = aligned_alloc(64, 32 * deep);
        configure();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i += 32) {
            int64_t n = rows - i < 32 ? rows - i : 32;
            int here = in_place && (n == 32 || n == 16);
            if (!here) gather(a, rows, depth, a_row, a_column, i, mine);
            blocks(here ? a + i * a_row : mine, here ? a_row : deep, packed, deep, n, columns, c + i * columns, columns);
        }
        _tile_release();
        free(mine);
    }
    free(packed);
}

#else
void ldp8_has_tiles(int32_t *found) { *found = 0; }
void ldp8_multiply(const int8_t *a, int64_t a_row, int64_t a_column, const int8_t *b, int64_t b_row, int64_t b_column, int64_t rows,
        int64_t depth, int64_t columns, int32_t *c, int threads) {}
#endif
