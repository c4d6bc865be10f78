/* Bytes four at a time: VNNI multiplies four unsigned by four signed ones and adds the products to a word of 32 bits. */
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_VNNI 1
#include <immintrin.h>

#define GROUP (1 << 18) /* bytes of samples that are worked on together, while they lie in the cache */

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline __m512i four_of(const void *codes) {
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

/* sum += products of four unsigned by four signed bytes; in words of the machine, as gcc 12 copies sums to and fro otherwise */
static inline void add_products(__m512i *sum, __m512i bytes, __m512i by) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(bytes), "v"(by)); }

/* The same by the four bytes that lie at `four`, for all words. */
static inline __attribute__((always_inline)) void add_products_by(__m512i *sum, __m512i bytes, const void *four) {
    typedef int32_t __attribute__((may_alias, aligned(1))) word;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(bytes), "m"(*(const word *)four));
}

/* What sums of products begin at whose codes are moved up by 128; sums: of what the codes are multiplied by. */
static inline __m512i begin_at(__m512i sums) { return _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums), 7); }

/* Four places of 16 channels, each `step` bytes behind the other, so that a channel's four lie together. */
static inline __m512i interleave(const void *at, int64_t step) {
    const uint8_t *from = at;
    __m128i a = _mm_loadu_si128((const void *)from), b = _mm_loadu_si128((const void *)(from + step));
    __m128i c = _mm_loadu_si128((const void *)(from + 2 * step)), d = _mm_loadu_si128((const void *)(from + 3 * step));
    __m128i e = _mm_unpacklo_epi8(a, b), f = _mm_unpackhi_epi8(a, b), g = _mm_unpacklo_epi8(c, d), h = _mm_unpackhi_epi8(c, d);
    __m512i out = _mm512_castsi128_si512(_mm_unpacklo_epi16(e, g));
    out = _mm512_inserti32x4(out, _mm_unpackhi_epi16(e, g), 1);
    out = _mm512_inserti32x4(out, _mm_unpacklo_epi16(f, h), 2);
    return _mm512_inserti32x4(out, _mm_unpackhi_epi16(f, h), 3);
}
#endif
