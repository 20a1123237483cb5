/* Shingles, MinHash sketches and exact Jaccard similarity of texts. The definitions, which the tests compare these with,
 * are in tunesmith/checks/shingles.py and near_runs.py. No threads: every worker process calls them for itself. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "constants.h"

#if defined(__x86_64__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef CLONES
#define CLONES
#endif

enum { SEPARATES = 0, IN_WORD = 1, IS_WORD = 2 };

static uint32_t crc_table[256];

static void fill_crc_table(void) {
    if (crc_table[1]) return;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[i] = c;
    }
}

/* The code point at `at`; its bytes are counted in *length. The text is valid UTF-8, except for lone surrogates. */
static inline uint32_t code_point(const uint8_t *at, const uint8_t *end, int *length) {
    uint32_t c = *at;
    if (c < 0x80) { *length = 1; return c; }
    int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
    if (at + more >= end) more = (int)(end - at) - 1;
    c &= 0x3F >> more;
    for (int i = 1; i <= more; i++) c = c << 6 | (at[i] & 0x3F);
    *length = more + 1;
    return c;
}

#include "traits.h"

/* CRC-32 of each word; how many there are. */
static int64_t words_of(const uint8_t *text, const uint8_t *end, const uint8_t *kinds, uint32_t *words) {
    int64_t count = 0;
    uint32_t crc = ~0u;
    int inside = 0;
    while (text < end) {
        int length;
        int kind = kinds[code_point(text, end, &length)];
        if (inside && kind != IN_WORD) {
            words[count++] = ~crc;
            inside = 0;
        }
        if (kind != SEPARATES) {
            if (!inside) crc = ~0u;
            for (int i = 0; i < length; i++) crc = crc_table[(crc ^ text[i]) & 0xFF] ^ (crc >> 8);
            if (kind == IS_WORD) words[count++] = ~crc;
            else inside = 1;
        }
        text += length;
    }
    if (inside) words[count++] = ~crc;
    return count;
}

static inline uint32_t mixed(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t h = a * FACTOR_1 + b * FACTOR_2 + c * FACTOR_3;
    h = (h ^ (h >> 32)) * FACTOR_4;
    return (uint32_t)(h >> 32);
}

/* Sorts values; `spare` is as long. */
static void sort(uint32_t *values, uint32_t *spare, int64_t n) {
    if (n < 48) {
        for (int64_t i = 1; i < n; i++) {
            uint32_t value = values[i];
            int64_t j = i;
            for (; j && values[j - 1] > value; j--) values[j] = values[j - 1];
            values[j] = value;
        }
        return;
    }
    for (int pass = 0; pass < 4; pass++) {
        int64_t starts[257] = {0};
        for (int64_t i = 0; i < n; i++) starts[(values[i] >> (8 * pass) & 0xFF) + 1]++;
        for (int i = 0; i < 256; i++) starts[i + 1] += starts[i];
        for (int64_t i = 0; i < n; i++) spare[starts[values[i] >> (8 * pass) & 0xFF]++] = values[i];
        memcpy(values, spare, n * sizeof *values);
    }
}

static int64_t unique(uint32_t *values, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (!i || values[i] != values[kept - 1]) values[kept++] = values[i];
    return kept;
}

CLONES static void minima(const uint32_t *shingles, int64_t n, const uint32_t *factors, const uint32_t *terms,
                          uint32_t *least) {
    for (int k = 0; k < HASHES; k++) least[k] = UINT32_MAX;
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = shingles[i];
        for (int k = 0; k < HASHES; k++) {
            uint32_t h = x * factors[k] + terms[k];
            least[k] = h < least[k] ? h : least[k];
        }
    }
}

/* Shingles of n texts, and their bands. `shingles` has room for one word a byte and one more a text; `spare` for the
 * longest text. Returns the number of shingles of all texts. */
int64_t sketch_texts(const uint8_t *bytes, const int64_t *offsets, int64_t n, const uint8_t *kinds,
                     const uint32_t *factors, const uint32_t *terms, uint32_t *shingles, uint32_t *counts,
                     uint32_t *bands, uint32_t *spare) {
    fill_crc_table();
    uint32_t least[HASHES];
    uint32_t *out = shingles;
    for (int64_t text = 0; text < n; text++) {
        const uint8_t *start = bytes + offsets[text], *end = bytes + offsets[text + 1];
        counts[text] = 0;
        memset(bands + text * BANDS, 0, BANDS * sizeof *bands);
        if (start == end) continue;
        int64_t words = words_of(start, end, kinds, spare), count = 0;
        if (!words) {
            uint32_t crc = ~0u;
            for (const uint8_t *at = start; at < end; at++) crc = crc_table[(crc ^ *at) & 0xFF] ^ (crc >> 8);
            out[count++] = mixed(~crc, 0, 0);
        } else if (words < SHINGLE) {
            out[count++] = mixed(spare[0], words > 1 ? spare[1] : 0, 0);
        } else {
            for (int64_t i = 0; i + SHINGLE <= words; i++) out[count++] = mixed(spare[i], spare[i + 1], spare[i + 2]);
        }
        sort(out, spare, count);
        count = unique(out, count);
        minima(out, count, factors, terms, least);
        for (int band = 0; band < BANDS; band++) {
            uint64_t key = 0;
            for (int i = 0; i < ROWS_PER_BAND; i++) key = (key ^ least[band * ROWS_PER_BAND + i]) * FACTOR_1;
            bands[text * BANDS + band] = (uint32_t)(key >> 32);
        }
        counts[text] = (uint32_t)count;
        out += count;
    }
    return out - shingles;
}

/* Hashes of the runs of `size` words of n texts, one text after the other. `grams` has room for one a byte; `spare` for
 * the longest text. Returns how many there are. */
int64_t word_runs(const uint8_t *bytes, const int64_t *offsets, int64_t n, const uint8_t *kinds, int64_t size,
                  uint64_t *grams, uint32_t *counts, uint32_t *spare) {
    fill_crc_table();
    uint64_t *out = grams;
    for (int64_t text = 0; text < n; text++) {
        int64_t words = words_of(bytes + offsets[text], bytes + offsets[text + 1], kinds, spare);
        counts[text] = words < size ? 0 : (uint32_t)(words - size + 1);
        for (int64_t i = 0; i + size <= words; i++) {
            uint64_t h = 0;
            for (int64_t k = 0; k < size; k++) h = h * FACTOR_1 + spare[i + k];
            *out++ = (h ^ (h >> 32)) * FACTOR_4;
        }
    }
    return out - grams;
}

/* The Jaccard similarity of two sorted sets; 0 as soon as it is clear that it is less than `least`. */
static double jaccard(const uint32_t *a, int64_t n, const uint32_t *b, int64_t m, double least) {
    int64_t i = 0, j = 0, shared = 0;
    int64_t needed = (int64_t)(least * (double)(n + m) / (1 + least)) - 1; /* one less, against rounding */
    if ((n < m ? n : m) < needed) return 0;
    while (i < n && j < m) {
        uint32_t x = a[i], y = b[j];
        shared += x == y;
        i += x <= y;
        j += y <= x;
        if (shared + (n - i < m - j ? n - i : m - j) < needed) return 0;
    }
    return (double)shared / (double)(n + m - shared);
}

/* Of rows that have a band in common, those that are similar: see near_runs.py. Returns the number of pairs, and in
 * *next the place in `order` to go on from if there is no room for more; -1 if a single run needs more. */
int64_t near_runs(const uint32_t *keys, const int64_t *order, int64_t n, int64_t given, const uint32_t *shingles,
                  const int64_t *starts, const uint32_t *lengths, double least, int64_t *next, int64_t room,
                  int64_t *rows, int64_t *others, double *similarities) {
    int64_t found = 0, begin = *next;
    int64_t representatives[REPRESENTATIVES];
    while (begin < n) {
        int64_t end = begin + 1;
        while (end < n && keys[end] == keys[begin]) end++;
        int64_t count = 0, before = found;
        for (int64_t at = begin; at < end && end - begin > 1; at++) {
            int64_t row = order[at];
            int is_new = 1;
            for (int64_t i = 0; i < count && row >= given; i++) {
                int64_t other = representatives[i];
                double similarity = jaccard(shingles + starts[row], lengths[row], shingles + starts[other],
                                            lengths[other], least);
                if (similarity < least) continue;
                is_new = 0;
                if (found == room) {
                    int is_stuck = begin == *next;
                    *next = begin;
                    return is_stuck ? -1 : before;
                }
                rows[found] = row, others[found] = other, similarities[found++] = similarity;
            }
            int is_kept = given < 0 || (is_new && (row < given || !given));
            if (is_kept && count < REPRESENTATIVES) representatives[count++] = row;
        }
        begin = end;
    }
    *next = n;
    return found;
}

/* Of the sources that this was compiled from: see compiled_sources.py. */
uint32_t source_checksum(void) { return SOURCE_CHECKSUM; }
