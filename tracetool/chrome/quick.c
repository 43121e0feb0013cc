/* Events of a Chrome trace from JSON text to columns: the quick way for what profilers write.

   It takes nothing that the strict decoder of `decode.py` would not take, and says of everything that it does not know
   for sure (an escape like \u00e9 in a name, a time with an exponent, a float for an id, invalid JSON) that it is
   odd: the caller then decodes from that event on in Python, which is the reference. What categories mean is told by
   the caller, in bits; nothing here knows Kineto.

   Profilers write events of one kind alike, but for their values. So the text between the values of an event that was
   taken is remembered (see "Shapes"), and where an event has text that was seen before, only its values are parsed. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))

typedef const uint8_t *text;

enum { LONGEST = 1 << 20 };
enum status { MORE = 0, CLOSED = 1, ODD = 2, FULL = 3, NEW_CATEGORY = 4, NO_MEMORY = 5 };

/* What is read of an event of some category. */
enum {
    SLICE = 1,        /* has a duration, and phase X */
    FLOW = 2,         /* the start of a flow, or its end, by phase; its `id` is its correlation */
    LINKED = 4,       /* args.correlation */
    EXTERNAL = 8,     /* args."External id" */
    SIZED = 16,       /* args.bytes */
    MEMORY = 32,      /* an instant "[memory]": args.Bytes and what follows from it */
    COLLECTIVE = 64,  /* where args."Collective name" is there, the caller reads the arguments */
    ASKED = 128,      /* the caller reads the arguments */
};

#define NO_ID INT64_MIN
#define NO_LINK ((int64_t)INT32_MIN)
#define LARGEST ((int64_t)1 << 62)
#define LARGEST_AMOUNT ((int64_t)1 << 53)
#define DEEPEST 64
#define MOST_LEFT 30 /* digits that are finer than a tenth of a nanosecond */
#define NOT_READ (-1)
#define NO_CATEGORY (-2)
#define NOT_KNOWN (-3)

/* A value as it stands in the text. */
typedef struct {
    text begin; /* of a string: its first byte behind the quote */
    union {
        text end; /* of a string: its closing quote */
        int64_t number;
    };
    char kind; /* 0 absent or null, 's' string, 'e' string with escapes, 'i' integer, 'o' anything else */
} value;

/* ---- Strings, each once, numbered in the order in which they are first met ---------------------------------- */

typedef struct {
    uint8_t *bytes;
    int64_t used, room;
    int64_t *ends; /* where each string ends in `bytes`; it begins where the one before it ends */
    uint32_t *hashes;
    int64_t count, count_room;
    int32_t *slots; /* number + 1, or 0 */
    int64_t slot_mask;
} table;

static uint64_t load(text p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

static uint32_t hash(text p, int64_t length) {
    uint64_t h = 0x9e3779b97f4a7c15u ^ (uint64_t)length;
    for (; length >= 8; p += 8, length -= 8) {
        h = (h ^ load(p)) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    uint64_t rest = 0;
    memcpy(&rest, p, (size_t)length);
    h = (h ^ rest) * 0xc4ceb9fe1a85ec53u;
    return (uint32_t)(h ^ (h >> 29));
}

static int grow(void **array, int64_t *room, int64_t needed, size_t size) {
    if (needed <= *room) return 1;
    int64_t larger = *room ? *room : 64;
    while (larger < needed) larger *= 2;
    void *moved = realloc(*array, (size_t)larger * size);
    if (!moved) return 0;
    *array = moved;
    *room = larger;
    return 1;
}

static int rehash(table *t) {
    int64_t size = t->slots ? 2 * (t->slot_mask + 1) : 1024;
    int32_t *slots = calloc((size_t)size, sizeof *slots);
    if (!slots) return 0;
    for (int64_t i = 0; i < t->count; i++) {
        int64_t at = t->hashes[i] & (size - 1);
        while (slots[at]) at = (at + 1) & (size - 1);
        slots[at] = (int32_t)i + 1;
    }
    free(t->slots);
    t->slots = slots;
    t->slot_mask = size - 1;
    return 1;
}

static inline int equal(const table *t, int32_t i, text p, int64_t length) {
    int64_t begin = i ? t->ends[i - 1] : 0;
    return t->ends[i] - begin == length && !memcmp(t->bytes + begin, p, (size_t)length);
}

/* The number of a string, which is added if it is new; -1 where there is no memory. */
static int32_t number_of(table *t, text p, int64_t length) {
    if (!t->slots && !rehash(t)) return -1;
    uint32_t h = hash(p, length);
    int64_t at = h & t->slot_mask;
    for (; t->slots[at]; at = (at + 1) & t->slot_mask) {
        int32_t i = t->slots[at] - 1;
        if (t->hashes[i] == h && equal(t, i, p, length)) return i;
    }
    int64_t room = t->count_room;
    if (t->count >= INT32_MAX - 1 || !grow((void **)&t->bytes, &t->room, t->used + length + 1, 1) ||
        !grow((void **)&t->ends, &room, t->count + 1, sizeof *t->ends) ||
        !grow((void **)&t->hashes, &t->count_room, t->count + 1, sizeof *t->hashes))
        return -1;
    memcpy(t->bytes + t->used, p, (size_t)length);
    t->used += length;
    t->ends[t->count] = t->used;
    t->hashes[t->count] = h;
    t->slots[at] = (int32_t)t->count + 1;
    int32_t number = (int32_t)t->count++;
    if (2 * t->count > t->slot_mask && !rehash(t)) return -1;
    return number;
}

static void clear(table *t) {
    free(t->bytes);
    free(t->ends);
    free(t->hashes);
    free(t->slots);
}

/* ---- The reader ----------------------------------------------------------------------------------------------- */

/* What follows some text that was seen. */
enum { WHOLE_EVENT, TEXT, INTEGER, NUMBER, TIME, ANY };

/* The text between two values of an event, and the value that follows. */
typedef struct {
    int32_t literal, length; /* in `literals` */
    int32_t next;            /* another text that was seen at the same place; -1 for none */
    int32_t first;           /* what was seen behind the value; -1 for nothing */
    int32_t code;            /* of the category that the text holds */
    int8_t what;             /* the kind of value */
    int8_t slot;             /* where it goes in an event; -1 for nowhere */
    int8_t fixed_count;
    struct {
        int8_t slot, length;
        int16_t begin;
    } fixed[2]; /* values that the text holds: the phase and the category */
} node;

enum { MOST_NODES = 2048, MOST_LITERALS = 1 << 17, MOST_BESIDE = 24, PAD = 16, LONGEST_LITERAL = 256 };

typedef struct {
    table names, categories, tracks, threads;
    node *nodes;
    int32_t node_count, first_node;
    uint8_t *literals;
    int32_t literals_used;
    struct {
        int64_t pid, tid;
        int32_t number, known;
    } recent[16]; /* threads of whole numbers */
    int32_t *codes; /* of categories */
    int64_t codes_room;
    uint8_t *scratch; /* a name without its escapes */
    int64_t scratch_room;
    int32_t flags[16]; /* of codes */
    int32_t flow_end;
    uint8_t memory_name[32];
    int64_t memory_name_length;
} reader;

typedef struct {
    /* Room for `capacity` rows. */
    int64_t capacity;
    int8_t *category;
    int32_t *name, *thread;
    int64_t *start, *end, *correlation, *external_id;
    /* Of few rows: which, and the value. */
    int64_t *sized, *bytes, *holding, *held, *placed, *device, *lined, *line;
    /* Events of which the caller reads the arguments: their row, -1 for one that is no row, and where they stand. */
    int64_t *asked, *asked_begin, *asked_end;
    /* What was found. */
    int64_t rows, sized_count, holding_count, placed_count, lined_count, asked_count;
    int64_t unpaired;
    int64_t consumed; /* where the comma, or the end, behind the last event taken stands */
    text new_category;
    int64_t new_category_length;
} columns;

EXPORT void tracetool_free(reader *r) {
    if (!r) return;
    clear(&r->names);
    clear(&r->categories);
    clear(&r->tracks);
    clear(&r->threads);
    free(r->nodes);
    free(r->literals);
    free(r->codes);
    free(r->scratch);
    free(r);
}

EXPORT reader *tracetool_new(const int32_t *flags, int32_t codes, int32_t flow_end, text memory_name, int64_t length) {
    reader *r = calloc(1, sizeof *r);
    if (!r || codes > 16 || length > 32) {
        free(r);
        return NULL;
    }
    r->first_node = -1;
    r->nodes = malloc(MOST_NODES * sizeof *r->nodes);
    r->literals = malloc(MOST_LITERALS);
    if (!r->nodes || !r->literals) {
        tracetool_free(r);
        return NULL;
    }
    memcpy(r->flags, flags, (size_t)codes * sizeof *flags);
    r->flow_end = flow_end;
    memcpy(r->memory_name, memory_name, (size_t)length);
    r->memory_name_length = length;
    return r;
}

/* Tell what code a category has. */
EXPORT int tracetool_category(reader *r, text p, int64_t length, int32_t code) {
    int32_t number = number_of(&r->categories, p, length);
    if (number < 0 || !grow((void **)&r->codes, &r->codes_room, number + 1, sizeof *r->codes)) return 0;
    r->codes[number] = code;
    return 1;
}

/* The strings of a table: 0 names, 1 tracks (of pids and tids that are text), 2 threads (packed, as below). */
EXPORT int64_t tracetool_strings(reader *r, int which, uint8_t **bytes, int64_t **ends) {
    table *t = which == 0 ? &r->names : which == 1 ? &r->tracks : &r->threads;
    *bytes = t->bytes;
    *ends = t->ends;
    return t->count;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

enum { MOST_VALUES = 64 };

typedef struct {
    text end;
    enum status why; /* a value could not be taken */
    /* The values of the event so far; -1 where its shape is not worth remembering. */
    int logged;
    struct {
        text begin, end;
        int8_t what, slot;
    } log[MOST_VALUES];
} scan;

static text fail(scan *s, enum status why) {
    s->why = why;
    return NULL;
}

static inline text blank(text p, text end) {
#ifdef __SSE2__
    while (end - p >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)p);
        __m128i some = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' ')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\n'))),
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('\t')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\r'))));
        unsigned others = ~(unsigned)_mm_movemask_epi8(some) & 0xffff;
        if (others) return p + __builtin_ctz(others);
        p += 16;
    }
#endif
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
    return p;
}

/* Behind what is neither a quote, a backslash, a control character nor beyond ASCII, or behind a part of it. */
static inline text plain(text p, text end) {
#ifdef __SSE2__
    while (end - p >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)p);
        /* Signed, what is beyond ASCII is below 0. */
        __m128i special = _mm_or_si128(_mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20)),
                                       _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')),
                                                    _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'))));
        unsigned which = (unsigned)_mm_movemask_epi8(special);
        if (which) return p + __builtin_ctz(which);
        p += 16;
    }
#endif
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') p++;
    return p;
}

static int continues(text p, text end, int count) {
    for (; count; count--, p++)
        if (p >= end || (*p & 0xc0) != 0x80) return 0;
    return 1;
}

/* The length of the UTF-8 sequence at `p`, 0 where it is none (RFC 3629). */
static int utf8(text p, text end) {
    if (*p < 0xc2 || *p > 0xf4) return 0;
    int length = *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
    if (!continues(p + 1, end, length - 1)) return 0;
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f))
        return 0;
    return length;
}

static int hex(uint8_t c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f'); }

/* A string, from behind its opening quote to its closing one. */
static text string(scan *s, text p, int *escapes) {
    text end = s->end;
    *escapes = 0;
    for (;;) {
        p = plain(p, end);
        if (p >= end) return fail(s, MORE);
        if (*p == '"') return p;
        if (*p == '\\') {
            *escapes = 1;
            if (end - p < 2 || (p[1] == 'u' && end - p < 6)) return fail(s, MORE);
            if (p[1] == 'u') {
                if (!hex(p[2]) || !hex(p[3]) || !hex(p[4]) || !hex(p[5])) return fail(s, ODD);
                if ((p[2] | 32) == 'd' && p[3] >= '8') return fail(s, ODD); /* half of a pair */
                p += 6;
            } else if (memchr("\"\\/bfnrt", p[1], 8)) {
                p += 2;
            } else {
                return fail(s, ODD);
            }
        } else if (*p < 0x20) {
            return fail(s, ODD);
        } else if (*p >= 0x80) {
            if (end - p < 4) return fail(s, MORE);
            int length = utf8(p, end);
            if (!length) return fail(s, ODD);
            p += length;
        }
    }
}

static inline int digit(uint8_t c) { return (uint8_t)(c - '0') < 10; }

/* The digits at `p`, which are added to those in `found`; whether there are too many of them is for the caller. */
static inline text digits(text p, text end, uint64_t *found) {
    uint64_t sum = *found;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    /* Eight at once: neighbours are joined to pairs, pairs to fours, fours to eight. */
    if (end - p >= 8) {
        uint64_t eight = load(p);
        if (!(((eight & 0xf0f0f0f0f0f0f0f0u) ^ 0x3030303030303030u) |
              (((eight + 0x0606060606060606u) & 0xf0f0f0f0f0f0f0f0u) ^ 0x3030303030303030u))) {
            eight = (eight & 0x0f0f0f0f0f0f0f0fu) * 2561 >> 8;
            eight = (eight & 0x00ff00ff00ff00ffu) * 6553601 >> 16;
            sum = sum * 100000000 + ((eight & 0x0000ffff0000ffffu) * 42949672960001u >> 32);
            p += 8;
        }
    }
#endif
    while (p < end && digit(*p)) sum = sum * 10 + (uint64_t)(*p++ - '0');
    *found = sum;
    return p;
}

/* A number; `whole` says whether it is an integer that `number` holds. */
static inline text number_at(scan *s, text p, int64_t *number, int *whole) {
    text end = s->end;
    int negative = *p == '-';
    p += negative;
    text first = p;
    uint64_t found = 0;
    p = digits(p, end, &found);
    if (p >= end) return fail(s, MORE);
    if (p == first || (*first == '0' && p - first > 1)) return fail(s, ODD);
    if (p - first > 200) return fail(s, ODD); /* larger than a float may be, with an exponent of two digits */
    *whole = p - first <= 18 && !(negative && !found);
    *number = (int64_t)(negative ? 0 - found : found);
    if (*p == '.') {
        *whole = 0;
        first = ++p;
        while (p < end && digit(*p)) p++;
        if (p >= end) return fail(s, MORE);
        if (p == first) return fail(s, ODD);
    }
    if ((*p | 32) == 'e') {
        *whole = 0;
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        first = p;
        while (p < end && digit(*p)) p++;
        if (p >= end) return fail(s, MORE);
        if (p == first || p - first > 2) return fail(s, ODD);
    }
    return p;
}

static text word(scan *s, text p, const char *expected, int64_t length) {
    if (s->end - p <= length) return fail(s, MORE);
    return memcmp(p, expected, (size_t)length) ? fail(s, ODD) : p + length;
}

/* Behind a value of any kind, which must be valid. */
static text skip(scan *s, text p, int depth) {
    text end = s->end;
    int64_t ignored;
    int flag;
    switch (*p) {
    case '"':
        p = string(s, p + 1, &flag);
        return p ? p + 1 : p;
    case '{':
    case '[': {
        uint8_t closing = *p == '{' ? '}' : ']';
        if (depth >= DEEPEST) return fail(s, ODD);
        p = blank(p + 1, end);
        if (p >= end) return fail(s, MORE);
        if (*p == closing) return p + 1;
        for (;;) {
            if (closing == '}') {
                if (*p != '"') return fail(s, ODD);
                if (!(p = string(s, p + 1, &flag))) return p;
                p = blank(p + 1, end);
                if (p >= end) return fail(s, MORE);
                if (*p != ':') return fail(s, ODD);
                p = blank(p + 1, end);
                if (p >= end) return fail(s, MORE);
            }
            if (!(p = skip(s, p, depth + 1))) return p;
            p = blank(p, end);
            if (p >= end) return fail(s, MORE);
            if (*p == closing) return p + 1;
            if (*p != ',') return fail(s, ODD);
            p = blank(p + 1, end);
            if (p >= end) return fail(s, MORE);
        }
    }
    case 't':
        return word(s, p, "true", 4);
    case 'f':
        return word(s, p, "false", 5);
    case 'n':
        return word(s, p, "null", 4);
    default:
        if (*p == '-' || digit(*p)) return number_at(s, p, &ignored, &flag);
        return fail(s, ODD);
    }
}

static inline text take(scan *s, text p, value *v) {
    int flag;
    v->begin = p;
    if (*p == '"') {
        v->begin = p + 1;
        if (!(p = string(s, p + 1, &flag))) return p;
        v->end = p;
        v->kind = flag ? 'e' : 's';
        return p + 1;
    }
    if (*p == '-' || digit(*p)) {
        if (!(p = number_at(s, p, &v->number, &flag))) return p;
        v->kind = flag ? 'i' : 'o';
        return p;
    }
    v->kind = *p == 'n' ? 0 : 'o';
    return skip(s, p, 1);
}

/* Decimal microseconds to nanoseconds, what is finer rounded half to even; else (an exponent, a sign) it is odd. */
static inline text take_time(scan *s, text p, value *v) {
    text end = s->end, first = p;
    uint64_t found = 0;
    p = digits(p, end, &found);
    int64_t before = p - first;
    if (p < end && before > 0 && before <= 15 && (*first != '0' || before == 1)) {
        int decimals = 0;
        if (*p == '.') {
            for (p++; p < end && decimals < 3 && digit(*p); decimals++) found = found * 10 + (uint64_t)(*p++ - '0');
            if (!decimals) p = end;
            if (p < end && digit(*p)) {
                int first_left = *p++ - '0', more = 0, left = 0;
                for (; p < end && left < MOST_LEFT && digit(*p); left++) more |= *p++ != '0';
                found += first_left > 5 || (first_left == 5 && (more || (found & 1)));
            }
        }
        if (p < end && !digit(*p) && (*p | 32) != 'e' && *p != '.') {
            for (; decimals < 3; decimals++) found *= 10;
            v->number = (int64_t)found;
            v->kind = 'i';
            return p;
        }
    }
    v->kind = 'o';
    return skip(s, first, 1);
}

/* ---- One event ------------------------------------------------------------------------------------------------- */

enum { SLOTS = 17 };

typedef struct {
    union {
        struct {
            value ph, cat, name, pid, tid, ts, dur, id;
            value correlation, external_id, old_external_id, bytes, allocated, held, device_type, collective, line;
        };
        value all[SLOTS];
    };
    int32_t code; /* of its category, where its shape tells it; else `NOT_KNOWN` */
} event;

/* Not by `memset`, which takes longer for so little. */
static inline void forget(event *e) {
    for (int i = 0; i < SLOTS; i++) {
        e->all[i].begin = NULL;
        e->all[i].kind = 0;
    }
    e->code = NOT_KNOWN;
}

#define SLOT(name) ((int8_t)(offsetof(event, name) / sizeof(value)))

static inline int is(text key, int64_t length, const char *name, int64_t name_length) {
    return length == name_length && !memcmp(key, name, (size_t)name_length);
}
#define IS(name) is(key, length, name, (int64_t)sizeof(name) - 1)

static inline value *argument(event *e, text key, int64_t length) {
    switch (*key) {
    case 'c':
        return IS("correlation") ? &e->correlation : NULL;
    case 'E':
        return IS("External id") ? &e->external_id : NULL;
    case 'e':
        return IS("external id") ? &e->old_external_id : NULL;
    case 'b':
        return IS("bytes") ? &e->bytes : NULL;
    case 'B':
        return IS("Bytes") ? &e->allocated : NULL;
    case 'T':
        return IS("Total Allocated") ? &e->held : NULL;
    case 'D':
        return IS("Device Type") ? &e->device_type : NULL;
    case 'C':
        return IS("Collective name") ? &e->collective : IS("Call line") ? &e->line : NULL;
    default:
        return NULL;
    }
}

static inline value *field(event *e, text key, int64_t length) {
    switch (length) {
    case 2:
        return IS("ph") ? &e->ph : IS("ts") ? &e->ts : IS("id") ? &e->id : NULL;
    case 3:
        return IS("cat") ? &e->cat : IS("pid") ? &e->pid : IS("tid") ? &e->tid : IS("dur") ? &e->dur : NULL;
    case 4:
        return IS("name") ? &e->name : NULL;
    default:
        return NULL;
    }
}

/* Note a value, from which `remember` makes a shape. */
static inline void note(scan *s, const event *e, const value *v, text begin, text end) {
    if (s->logged < 0) return;
    if (s->logged >= MOST_VALUES || (v && v->kind != 's' && v->kind != 'i')) {
        s->logged = -1;
        return;
    }
    int quoted = *begin == '"';
    s->log[s->logged].begin = begin + quoted;
    s->log[s->logged].end = end - quoted;
    s->log[s->logged].slot = (int8_t)(v ? v - e->all : -1);
    s->log[s->logged++].what = quoted                              ? TEXT
                               : v == &e->ts || v == &e->dur       ? TIME
                               : v                                 ? INTEGER
                               : *begin == '-' || digit(*begin) ? NUMBER
                                                                   : ANY;
}

static text members(scan *s, text p, event *e, int in_args) {
    text end = s->end;
    p = blank(p, end);
    if (p >= end) return fail(s, MORE);
    if (*p == '}') return p + 1;
    int args_seen = 0;
    for (;;) {
        int escapes;
        if (*p != '"') return fail(s, ODD);
        text key = p + 1;
        if (!(p = string(s, key, &escapes))) return p;
        int64_t length = p - key;
        if (escapes) return fail(s, ODD);
        p++;
        if (p < end && *p != ':') p = blank(p, end);
        if (p >= end) return fail(s, MORE);
        if (*p != ':') return fail(s, ODD);
        p = blank(p + 1, end);
        if (p >= end) return fail(s, MORE);
        value *v = in_args ? argument(e, key, length) : field(e, key, length);
        if (v) {
            /* Of a key that stands twice the last counts; that is for the caller. */
            if (v->begin) return fail(s, ODD);
            text begin = p;
            p = v == &e->ts || v == &e->dur ? take_time(s, p, v) : take(s, p, v);
            v->begin = v->begin ? v->begin : begin;
            if (p) note(s, e, v, begin, p);
        } else if (!in_args && IS("args")) {
            if (*p != '{' || args_seen++) return fail(s, ODD);
            p = members(s, p + 1, e, 1);
        } else {
            text begin = p;
            p = skip(s, p, 1);
            if (p) note(s, e, NULL, begin, p);
        }
        if (!p) return p;
        if (p < end && *p != ',') p = blank(p, end);
        if (p >= end) return fail(s, MORE);
        if (*p == '}') return p + 1;
        if (*p != ',') return fail(s, ODD);
        p = blank(p + 1, end);
        if (p >= end) return fail(s, MORE);
    }
}

/* ---- Shapes ----------------------------------------------------------------------------------------------------

   A tree: what stands before the first value, what stood between it and the second one in events that began so, and
   so on. The same text after values of the same kinds leaves a JSON parser in the same state: what was valid once
   is valid again, as long as the values are, and these are parsed each time. */

static inline int same_text(text p, text literal, int32_t length) {
#ifdef __SSE2__
    for (; length > 0; p += 16, literal += 16, length -= 16) {
        __m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), _mm_loadu_si128((const __m128i *)literal));
        unsigned wanted = length >= 16 ? 0xffff : (1u << length) - 1;
        if (((unsigned)_mm_movemask_epi8(equal) & wanted) != wanted) return 0;
    }
    return 1;
#else
    return !memcmp(p, literal, (size_t)length);
#endif
}

/* Which of the texts seen at some place stands at `p`, -1 for none; it is the first to be tried the next time. */
static inline int32_t seen(reader *r, int32_t *first, text p, text end) {
    for (int32_t *at = first; *at >= 0; at = &r->nodes[*at].next) {
        node *n = &r->nodes[*at];
        if (end - p < n->length + PAD || !same_text(p, r->literals + n->literal, n->length)) continue;
        int32_t found = *at;
        *at = n->next;
        n->next = *first;
        *first = found;
        return found;
    }
    return -1;
}

/* Behind an event of a shape that was seen, whose values go to `e`; NULL where it has none. */
static text take_shape(reader *r, scan *s, text p, event *e) {
    text end = s->end;
    int32_t *place = &r->first_node;
    for (;;) {
        int32_t number = seen(r, place, p, end);
        if (number < 0) return NULL;
        node *n = &r->nodes[number];
        for (int i = 0; i < n->fixed_count; i++) {
            value *v = &e->all[n->fixed[i].slot];
            v->begin = p + n->fixed[i].begin;
            v->end = v->begin + n->fixed[i].length;
            v->kind = 's';
        }
        if (n->code != NOT_KNOWN) e->code = n->code;
        p += n->length;
        text begin = p;
        switch (n->what) {
        case WHOLE_EVENT:
            return p;
        case TEXT:
            p = plain(p, end);
            if (p >= end || *p != '"') return NULL;
            if (n->slot >= 0) {
                value *v = &e->all[n->slot];
                v->begin = begin;
                v->end = p;
                v->kind = 's';
            }
            break;
        case TIME: {
            value *v = &e->all[n->slot];
            p = take_time(s, p, v);
            if (!p || v->kind != 'i') return NULL;
            v->begin = begin;
            break;
        }
        case INTEGER: {
            value *v = &e->all[n->slot];
            if (*p != '-' && !digit(*p)) return NULL;
            int whole;
            p = number_at(s, p, &v->number, &whole);
            if (!p || !whole) return NULL;
            v->begin = begin;
            v->kind = 'i';
            break;
        }
        case NUMBER: {
            int64_t ignored;
            int whole;
            if (*p != '-' && !digit(*p)) return NULL;
            if (!(p = number_at(s, p, &ignored, &whole))) return NULL;
            break;
        }
        default:
            if (*p == '"' || *p == '-' || digit(*p)) return NULL;
            if (!(p = skip(s, p, 1))) return NULL;
        }
        place = &n->first;
    }
}

/* Remember the shape of an event that was taken, whose values were noted. */
static void remember(reader *r, const scan *s, text begin, text end, int32_t code) {
    if (s->logged <= 0) return;
    int32_t *place = &r->first_node;
    text from = begin;
    for (int i = 0; i <= s->logged;) {
        node n = {.next = -1, .first = -1, .code = NOT_KNOWN, .what = WHOLE_EVENT, .slot = -1};
        text to = end;
        for (; i <= s->logged; i++) {
            if (i == s->logged) {
                i++;
                break;
            }
            int8_t slot = s->log[i].slot;
            int64_t length = s->log[i].end - s->log[i].begin;
            if (n.fixed_count < 2 && (slot == SLOT(ph) || slot == SLOT(cat)) && length < 64) {
                n.fixed[n.fixed_count].slot = slot;
                n.fixed[n.fixed_count].length = (int8_t)length;
                n.fixed[n.fixed_count++].begin = (int16_t)(s->log[i].begin - from);
                if (slot == SLOT(cat)) n.code = code;
                continue;
            }
            to = s->log[i].begin;
            n.what = s->log[i].what;
            n.slot = slot;
            i++;
            break;
        }
        int64_t length = to - from;
        if (length > LONGEST_LITERAL) return;
        int beside = 0;
        int32_t found = *place;
        for (; found >= 0; found = r->nodes[found].next, beside++) {
            const node *other = &r->nodes[found];
            if (other->length == length && other->what == n.what && other->slot == n.slot &&
                !memcmp(r->literals + other->literal, from, (size_t)length))
                break;
        }
        if (found < 0) {
            int32_t room = (int32_t)length + PAD;
            if (beside >= MOST_BESIDE || r->node_count >= MOST_NODES || r->literals_used + room > MOST_LITERALS) return;
            n.literal = r->literals_used;
            n.length = (int32_t)length;
            memcpy(r->literals + n.literal, from, (size_t)length);
            memset(r->literals + n.literal + length, 0, PAD);
            r->literals_used += room;
            n.next = *place;
            found = *place = r->node_count++;
            r->nodes[found] = n;
        }
        place = &r->nodes[found].first;
        if (n.what != WHOLE_EVENT) from = s->log[i - 1].end;
    }
}

static inline int is_text(const value *v) { return v->kind == 's' || v->kind == 'e' || v->kind == 0; }
static inline int is_track(const value *v) { return v->kind != 'o' && v->kind != 'e'; }

/* The number of a string value; -1 for no memory, -2 for an escape that is not known here. */
static int32_t number_of_value(reader *r, table *t, const value *v) {
    if (v->kind == 's') return number_of(t, v->begin, v->end - v->begin);
    if (!grow((void **)&r->scratch, &r->scratch_room, v->end - v->begin + 1, 1)) return -1;
    uint8_t *out = r->scratch;
    for (text p = v->begin; p < v->end; p++) {
        if (*p != '\\') {
            *out++ = *p;
            continue;
        }
        const char *from = "\"\\/bfnrt", *to = "\"\\/\b\f\n\r\t";
        const char *at = memchr(from, *++p, 8);
        if (!at) return -2;
        *out++ = (uint8_t)to[at - from];
    }
    return number_of(t, r->scratch, out - r->scratch);
}

/* A whole number in bounds, or `NO_ID` where there is none; says whether it is one of these. */
static inline int whole(const value *v, int64_t *number) {
    *number = v->kind ? v->number : NO_ID;
    return v->kind == 0 || (v->kind == 'i' && v->number < LARGEST && v->number > -LARGEST);
}

static inline int amount(const value *v, int64_t *number, int negative) {
    return whole(v, number) &&
           (*number == NO_ID || (*number <= LARGEST_AMOUNT && *number >= (negative ? -LARGEST_AMOUNT : 0)));
}

/* The same of an id that links events, `NO_LINK` where there is none; an id that would look like that is not taken. */
static inline int link(const value *v, int64_t *number) {
    if (!whole(v, number) || *number == NO_LINK) return 0;
    if (*number == NO_ID) *number = NO_LINK;
    return 1;
}

/* A thread is packed as 4 numbers: the kinds and the values of its pid and tid; text by its number as a track. */
static int32_t thread_of(reader *r, const event *e) {
    int whole = e->pid.kind == 'i' && e->tid.kind == 'i';
    int64_t at = (e->tid.number ^ e->pid.number * 5) & 15;
    if (whole && r->recent[at].known && r->recent[at].pid == e->pid.number && r->recent[at].tid == e->tid.number)
        return r->recent[at].number;
    int64_t packed[4] = {e->pid.kind, 0, e->tid.kind, 0};
    const value *of[2] = {&e->pid, &e->tid};
    for (int i = 0; i < 2; i++) {
        if (of[i]->kind == 'i') packed[2 * i + 1] = of[i]->number;
        if (of[i]->kind == 's' && (packed[2 * i + 1] = number_of_value(r, &r->tracks, of[i])) < 0) return -1;
    }
    int32_t number = number_of(&r->threads, (text)packed, sizeof packed);
    if (whole && number >= 0) {
        r->recent[at].pid = e->pid.number;
        r->recent[at].tid = e->tid.number;
        r->recent[at].number = number;
        r->recent[at].known = 1;
    }
    return number;
}

static inline int same(const value *v, const char *expected, int64_t length) {
    return v->kind == 's' && is(v->begin, v->end - v->begin, expected, length);
}

static inline int kind_of(reader *r, columns *c, const event *e, int32_t *kind) {
    if (e->code != NOT_KNOWN) {
        *kind = e->code;
        return 1;
    }
    if (e->cat.kind == 0) {
        *kind = NO_CATEGORY;
        return 1;
    }
    int64_t known = r->categories.count;
    int32_t number = number_of(&r->categories, e->cat.begin, e->cat.end - e->cat.begin);
    if (number < 0) return NO_MEMORY;
    if (number < known) {
        *kind = r->codes[number];
        return 1;
    }
    /* Room for its code, which the caller tells before it goes on. */
    if (!grow((void **)&r->codes, &r->codes_room, number + 1, sizeof *r->codes)) return NO_MEMORY;
    r->codes[number] = NOT_READ;
    c->new_category = e->cat.begin;
    c->new_category_length = e->cat.end - e->cat.begin;
    return NEW_CATEGORY;
}

static void ask(columns *c, int64_t row, text base, text begin, text end) {
    c->asked[c->asked_count] = row;
    c->asked_begin[c->asked_count] = begin - base;
    c->asked_end[c->asked_count++] = end - base;
}

/* Takes one whole event; says `MORE` for "go on". */
static inline int add(reader *r, columns *c, event *e, text base, text begin, text end) {
    if (!is_text(&e->ph) || !is_text(&e->cat) || !is_text(&e->name) || !is_track(&e->pid) || !is_track(&e->tid) ||
        e->cat.kind == 'e' || e->ph.kind == 'e')
        return ODD;
    int32_t kind;
    int known = kind_of(r, c, e, &kind);
    if (known != 1) return known;
    e->code = kind;
    if (kind == NO_CATEGORY) {
        if (e->name.kind == 'e' && same(&e->ph, "M", 1)) return ODD;
        if (same(&e->ph, "M", 1) && same(&e->name, "thread_name", 11)) ask(c, -1, base, begin, end);
        return MORE;
    }
    if (kind < 0) return MORE;
    int32_t flags = r->flags[kind];
    if (flags & SLICE) {
        if (!same(&e->ph, "X", 1)) {
            c->unpaired += same(&e->ph, "B", 1) || same(&e->ph, "E", 1);
            return MORE;
        }
    } else if (flags & FLOW) {
        if (same(&e->ph, "f", 1))
            kind = r->flow_end;
        else if (!same(&e->ph, "s", 1))
            return MORE;
    } else if (flags & MEMORY) {
        if (e->name.kind == 'e') return ODD;
        if (!same(&e->name, (const char *)r->memory_name, r->memory_name_length)) return MORE;
    }
    if (e->name.kind == 0 || e->ts.kind != 'i') return ODD;
    int64_t duration = 0;
    if (flags & SLICE) {
        if (e->dur.kind != 'i' || e->dur.number > LARGEST_AMOUNT) return ODD;
        duration = e->dur.number;
    }
    int64_t correlation = NO_LINK, external = NO_LINK, bytes = NO_ID, held = NO_ID, device = NO_ID;
    if (flags & LINKED && !link(&e->correlation, &correlation)) return ODD;
    if (flags & FLOW && !link(&e->id, &correlation)) return ODD;
    if (flags & EXTERNAL) {
        if (!link(&e->external_id, &external)) return ODD;
        if (external == NO_LINK && !link(&e->old_external_id, &external)) return ODD;
        /* Read with those of its neighbours that lack the other one. */
        if (e->old_external_id.begin && e->external_id.begin) return ODD;
    }
    if (flags & SIZED && !amount(&e->bytes, &bytes, 0)) return ODD;
    if (flags & MEMORY && (!amount(&e->allocated, &bytes, 1) || !amount(&e->held, &held, 0) ||
                           !whole(&e->device_type, &device)))
        return ODD;
    if (e->line.kind && e->line.kind != 's' && e->line.kind != 'e') return ODD;
    int32_t line = -1;
    int32_t name = number_of_value(r, &r->names, &e->name);
    if (name == -2) return ODD;
    if (e->line.kind && (line = number_of_value(r, &r->names, &e->line)) == -2) return ODD;
    int32_t thread = thread_of(r, e);
    if (name < 0 || thread < 0 || (e->line.kind && line < 0)) return NO_MEMORY;
    int64_t row = c->rows++;
    c->category[row] = (int8_t)kind;
    c->name[row] = name;
    c->thread[row] = thread;
    c->start[row] = e->ts.number;
    c->end[row] = e->ts.number + duration;
    c->correlation[row] = correlation;
    c->external_id[row] = external;
    if (bytes != NO_ID) {
        c->sized[c->sized_count] = row;
        c->bytes[c->sized_count++] = bytes;
    }
    if (held != NO_ID) {
        c->holding[c->holding_count] = row;
        c->held[c->holding_count++] = held;
    }
    if (device != NO_ID && device > 0) {
        c->placed[c->placed_count] = row;
        c->device[c->placed_count++] = 1;
    }
    if (line >= 0) {
        c->lined[c->lined_count] = row;
        c->line[c->lined_count++] = line;
    }
    if (flags & ASKED || (flags & COLLECTIVE && e->collective.kind)) ask(c, row, base, begin, end);
    return MORE;
}

/* Takes all whole events of a window, whose first byte is the `[` or the `,` before an event.

   MORE: the window ends in an event, or behind one; CLOSED: the list ends; ODD: the event behind `consumed` is not for
   us; FULL: call again, from `consumed`; NEW_CATEGORY: tell its code, then call again. Each time all events up to
   `consumed` were taken. */
EXPORT int tracetool_take(reader *r, text base, int64_t length, columns *c) {
    event e;
    scan s;
    s.end = base + length;
    s.why = MORE;
    text p = base;
    c->rows = c->sized_count = c->holding_count = c->placed_count = c->lined_count = c->asked_count = 0;
    c->unpaired = c->consumed = 0;
    if (length < 1) return MORE;
    for (;;) {
        if (c->rows >= c->capacity || c->asked_count >= c->capacity) return FULL;
        p = blank(base + c->consumed + 1, s.end);
        if (p >= s.end) return MORE;
        if (*p == ']') {
            c->consumed = p + 1 - base;
            return CLOSED;
        }
        if (*p != '{') return ODD;
        text begin = p;
        forget(&e);
        int known = (p = take_shape(r, &s, p, &e)) != NULL;
        if (!known) {
            forget(&e);
            s.logged = 0;
            if (!(p = members(&s, begin + 1, &e, 0))) return s.why;
        }
        text end = p;
        if (end - begin > LONGEST) return ODD; /* whether it is too large to be an event is the caller's to say */
        p = blank(p, s.end);
        if (p >= s.end) return MORE;
        if (*p != ',' && *p != ']') return ODD;
        int status = add(r, c, &e, base, begin, end);
        if (status != MORE) return status;
        if (!known) remember(r, &s, begin, end, e.code);
        c->consumed = p - base;
        if (*p == ']') {
            c->consumed++;
            return CLOSED;
        }
    }
}
