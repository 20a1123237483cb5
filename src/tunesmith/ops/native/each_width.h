/* Includes the file KERNELS once for each width of vector registers: its functions are named WIDE(f), hold LANES numbers
 * in a register (`lanes`), and are called as BY_WIDTH(f).
 *
 * One source for all widths, with vectors of sixteen numbers, does not do: where registers are narrower, GCC keeps such
 * vectors in memory, and a product becomes fifty times slower. */

#define lanes WIDE(lanes)
#define PARTS (16 / LANES) /* registers that hold sixteen numbers */

/* Within `switch (rows)`: CALL with the number of rows as a constant. */
#define ROWS_TO_6(CALL)                                                                                                \
    case 1: CALL(1); break;                                                                                            \
    case 2: CALL(2); break;                                                                                            \
    case 3: CALL(3); break;                                                                                            \
    case 4: CALL(4); break;                                                                                            \
    case 5: CALL(5); break;                                                                                            \
    case 6: CALL(6); break;
#define ROWS_TO_12(CALL)                                                                                               \
    ROWS_TO_6(CALL)                                                                                                    \
    case 7: CALL(7); break;                                                                                            \
    case 8: CALL(8); break;                                                                                            \
    case 9: CALL(9); break;                                                                                            \
    case 10: CALL(10); break;                                                                                          \
    case 11: CALL(11); break;                                                                                          \
    case 12: CALL(12); break;

/* A tile of sums has up to TILE_ROWS rows of two registers: 24 of AVX-512's 32, and 12 of the 16 of others. */
#define UP_TO_TILE_ROWS(CALL) PASTE(ROWS_TO, TILE_ROWS)(CALL)

#if HAS_AMX
#define LANES 16
#define TILE_ROWS 12
#define FOR_WIDTH __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#include KERNELS
#undef LANES
#undef TILE_ROWS
#undef FOR_WIDTH

#define LANES 8
#define TILE_ROWS 6
#define FOR_WIDTH __attribute__((target("avx2,fma")))
#include KERNELS
#undef LANES
#undef TILE_ROWS
#undef FOR_WIDTH
#endif

#define LANES 4
#define TILE_ROWS 6
#define FOR_WIDTH
#include KERNELS
#undef LANES
#undef TILE_ROWS
#undef FOR_WIDTH

#undef lanes
#undef PARTS
#undef ROWS_TO_6
#undef ROWS_TO_12
#undef UP_TO_TILE_ROWS
#undef KERNELS
