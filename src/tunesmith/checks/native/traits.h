/* What texts have, in one pass over their bytes: which checks can find anything in them, and which known words they
 * name. The definition of each trait is in tunesmith/checks/traits.py, whose tests compare the checks with and without.
 */

enum { /* of the bytes below 128 */
    ALNUM = 1,   /* in a word */
    DIGIT = 2,
    FILLER = 4,  /* may be between the digits of a number */
    TOKEN = 8,   /* in a key or a file name */
    HEX = 16,    /* in an IPv6 address, with the colon */
    VALUE = 32,  /* in a password */
    SPACE = 64,  /* as Python's \s */
    SIGN = 128   /* looked at with what follows */
};

enum { LEAD_1 = 1, NEXT_1 = 2, LEAD_2 = 4, NEXT_2 = 8, BAD = 16, HIDES = 32 }; /* of code points: traits.py */

/* Known words: open addressing, with linear probing. */
typedef struct {
    const uint8_t *bytes;
    const int64_t *offsets;
    const int32_t *slots; /* 1 + the number of the word; 0 where there is none */
    uint64_t mask;
    const uint64_t *groups, *hints;
    const uint32_t *traits;
} Words;

#define BASIS 0xCBF29CE484222325u
#define PRIME 0x100000001B3u

/* Fills `slots`, a power of two of them, at least twice as many as there are words. */
int64_t index_words(const uint8_t *bytes, const int64_t *offsets, int64_t n, int32_t *slots, int64_t size) {
    for (int64_t word = 0; word < n; word++) {
        uint64_t hash = BASIS;
        for (int64_t at = offsets[word]; at < offsets[word + 1]; at++) hash = (hash ^ bytes[at]) * PRIME;
        uint64_t slot = (hash ^ hash >> 32) & (uint64_t)(size - 1);
        while (slots[slot]) slot = (slot + 1) & (uint64_t)(size - 1);
        slots[slot] = (int32_t)word + 1;
    }
    return n;
}

enum { /* Trait of traits.py */
    HAS_AT = 1 << 0,
    HAS_NUMBER = 1 << 1,
    HAS_ADDRESS = 1 << 2,
    HAS_TOKEN = 1 << 3,
    HAS_VALUE = 1 << 4,
    HAS_TAG = 1 << 5,
    HAS_BRACKET = 1 << 6,
    HAS_HEADING = 1 << 7,
    HAS_ENTITY = 1 << 8,
    HAS_BAD = 1 << 9,
    HAS_MOJIBAKE = 1 << 10,
    HAS_HIDDEN = 1 << 11,
    HAS_WORDS = 1 << 13,
    HAS_BLANK = 1 << 14
};

static inline uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }
static inline int is_letter(uint8_t c) { return lower(c) >= 'a' && lower(c) <= 'z'; }

/* The number of the word from `start` to `end`; -1 if it is not known. A word beyond ASCII is known by its ASCII
 * letters, behind a byte 255. */
static int64_t known_word(const Words *known, const uint8_t *start, const uint8_t *end, uint64_t hash, int is_ascii) {
    if (!is_ascii) {
        hash = (BASIS ^ 0xFF) * PRIME;
        for (const uint8_t *at = start; at < end; at++)
            if (*at < 0x80) hash = (hash ^ lower(*at)) * PRIME;
    }
    for (uint64_t slot = (hash ^ hash >> 32) & known->mask; known->slots[slot]; slot = (slot + 1) & known->mask) {
        int64_t word = known->slots[slot] - 1;
        const uint8_t *at = known->bytes + known->offsets[word], *last = known->bytes + known->offsets[word + 1];
        const uint8_t *mine = start;
        if (!is_ascii) {
            if (at == last || *at++ != 0xFF) continue;
            while (at < last) {
                while (mine < end && *mine >= 0x80) mine++;
                if (mine == end || lower(*mine) != *at) break;
                mine++, at++;
            }
            while (mine < end && *mine >= 0x80) mine++;
        } else {
            if (last - at != end - start) continue;
            while (at < last && lower(*mine) == *at) mine++, at++;
        }
        if (at == last && mine == end) return word;
    }
    return -1;
}

/* Whether what is behind a colon or an equals sign may be a value that is assigned: eight signs, with a digit. */
static int is_assigned(const uint8_t *at, const uint8_t *end, const uint8_t *classes) {
    if (at < end && *at == '>') at++;
    for (int spaces = 0; spaces < 3 && at < end && *at < 0x80 && classes[*at] & SPACE; spaces++) at++;
    if (at < end && *at >= 0x80) return 1; /* a space, perhaps */
    if (at < end && (*at == '"' || *at == '\'' || *at == '`')) at++;
    int length = 0, has_digit = 0;
    for (; at < end && *at < 0x80 && classes[*at] & VALUE; at++) {
        length++;
        has_digit |= classes[*at] & DIGIT;
        if (length >= 8 && has_digit) return 1;
    }
    return 0;
}

/* The trait of a sign with what follows it. */
static uint32_t trait_of_sign(const uint8_t *at, const uint8_t *end, const uint8_t *classes) {
    uint8_t next = at + 1 < end ? at[1] : ' ', third = at + 2 < end ? at[2] : ' ';
    switch (*at) {
    case '@':
        return HAS_AT;
    case '<':
        if (is_letter(next) || next == '/' || next == '|' || next >= 0x80) return HAS_TAG;
        return next == '<' && (third == '/' || third == 'S') ? HAS_TAG : 0;
    case '[':
        return next == '/' || (next >= 'A' && next <= 'Z') ? HAS_BRACKET : 0;
    case '#':
        return end - at > 4 && next == '#' && third == '#' && at[3] == ' ' && is_letter(at[4]) ? HAS_HEADING : 0;
    case '&':
        return next == '#' || is_letter(next) ? HAS_ENTITY : 0;
    case ':':
    case '=':
        return is_assigned(at + 1, end, classes) ? HAS_VALUE : 0;
    }
    return 0;
}

/* Traits of n texts; the groups and hints of the words in them. `classes` of the bytes below 128, `marked` of all code
 * points. */
int64_t traits_of(const uint8_t *bytes, const int64_t *offsets, int64_t n, const uint8_t *classes,
                  const uint8_t *marked, const uint8_t *word_bytes, const int64_t *word_offsets, const int32_t *slots,
                  int64_t size, const uint64_t *word_groups, const uint64_t *word_hints, const uint32_t *word_traits,
                  uint32_t *traits, uint64_t *groups, uint64_t *hints) {
    Words known = {word_bytes, word_offsets, slots, (uint64_t)(size - 1), word_groups, word_hints, word_traits};
    for (int64_t text = 0; text < n; text++) {
        const uint8_t *at = bytes + offsets[text], *end = bytes + offsets[text + 1], *word = 0;
        uint64_t hash = BASIS, in_groups = 0, in_hints = 0;
        uint32_t found = 0;
        int is_ascii = 1, is_blank = 1, before = 0;
        int digits = 0, gap = 3, token = 0, dots = 0, colons = 0, hex_digits = 0;
        uint8_t last = ' ', second_last = ' ';
        for (;;) {
            if (at < end && *at >= 'a' && *at <= 'z') { /* most of a text: what the rest would do, once for many */
                const uint8_t *start = at;
                uint8_t most = 0;
                if (!word) word = at, hash = BASIS, is_ascii = 1;
                for (; at < end && *at >= 'a' && *at <= 'z'; at++) {
                    hash = (hash ^ *at) * PRIME;
                    most = *at > most ? *at : most;
                }
                token += (int)(at - start);
                if (token >= 20) found |= HAS_TOKEN;
                if (most > 'f') colons = hex_digits = 0;
                gap = 3, is_blank = before = 0, second_last = last = 'a';
            }
            uint8_t c = at < end ? *at : ' ';
            uint8_t class = c < 0x80 ? classes[c] : 0;
            int is_in_word = class & ALNUM || (c >= 0x80 && !(c == 0xED && at + 1 < end && at[1] >= 0xA0));
            if (is_in_word) {
                if (!word) word = at, hash = BASIS, is_ascii = 1;
                hash = (hash ^ lower(c)) * PRIME;
                is_ascii &= c < 0x80;
            } else if (word) {
                int64_t number = known_word(&known, word, at, hash, is_ascii);
                if (number >= 0) {
                    in_groups |= known.groups[number];
                    in_hints |= known.hints[number];
                    found |= known.traits[number];
                }
                word = 0;
            }
            if (at >= end) break;
            if (c >= 0x80) {
                int length;
                uint32_t point = code_point(at, end, &length);
                int mark = marked[point];
                if (mark & BAD) found |= HAS_BAD;
                if (mark & HIDES) found |= HAS_HIDDEN;
                if (before & LEAD_1 && mark & NEXT_1) found |= HAS_MOJIBAKE;
                if (before & LEAD_2 && mark & NEXT_2) found |= HAS_MOJIBAKE;
                if (point == 0x130 || point == 0x212A) found |= HAS_WORDS; /* whose lower case is ASCII */
                before = mark;
                gap = 3, token = 0, colons = hex_digits = 0, second_last = last = ' ';
                at += length;
                continue;
            }
            before = 0;
            if (class & DIGIT) {
                digits = gap <= 2 ? digits + 1 : 1;
                gap = 0;
                if (digits >= 6) found |= HAS_NUMBER;
                if (last == '.' && second_last >= '0' && second_last <= '9') dots++;
                else if (!(last >= '0' && last <= '9')) dots = 0;
                if (dots >= 3) found |= HAS_ADDRESS;
            } else {
                gap = class & FILLER ? gap + 1 : 3;
            }
            token = class & TOKEN ? token + 1 : 0;
            if (token >= 20) found |= HAS_TOKEN;
            if (class & HEX) {
                colons += c == ':';
                hex_digits += class & DIGIT ? 1 : 0;
                if (colons >= 2 && hex_digits) found |= HAS_ADDRESS;
            } else {
                colons = hex_digits = 0;
            }
            if (c > ' ' && c < 0x7F) is_blank = 0;
            else if (marked[c] & BAD) found |= HAS_BAD;
            if (class & SIGN) found |= trait_of_sign(at, end, classes);
            second_last = last, last = c;
            at++;
        }
        traits[text] = found | (is_blank ? HAS_BLANK : 0);
        groups[text] = in_groups, hints[text] = in_hints;
    }
    return n;
}
