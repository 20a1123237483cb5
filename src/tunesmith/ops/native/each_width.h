/* Includes the file KERNELS once for each width of vector registers: its functions are named WIDE(f), hold LANES numbers
 * in a register (`lanes`), and are called as BY_WIDTH(f).
 *
 * One source for all widths, with vectors of sixteen numbers, does not do: where registers are narrower, GCC keeps such
 * vectors in memory, and a product becomes fifty times slower. */

#define lanes WIDE(lanes)
#define PARTS (16 / LANES) /* registers that hold sixteen numbers */

#if HAS_AMX
#define LANES 16
#define FOR_WIDTH __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#include KERNELS
#undef LANES
#undef FOR_WIDTH

#define LANES 8
#define FOR_WIDTH __attribute__((target("avx2,fma")))
#include KERNELS
#undef LANES
#undef FOR_WIDTH
#endif

#define LANES 4
#define FOR_WIDTH
#include KERNELS
#undef LANES
#undef FOR_WIDTH

#undef lanes
#undef PARTS
#undef KERNELS
