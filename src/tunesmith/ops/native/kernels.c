/* Fused operations: one pass over memory where PyTorch makes several. The Python side, with the reference that each is
 * tested against, is in tunesmith/ops. Every function takes the number of threads to use. Arrays are row-major and
 * contiguous unless strides are given. bf16 is read into fp32, computed there, and rounded once to nearest even. */

#include "numbers.h"

#define T bf16
#define NAME(f) f##_bf16
#define GET(v) from_bf16(v)
#define PUT(v) to_bf16(v)
#include "elementwise.h"
#include "paged.h"
#undef T
#undef NAME
#undef GET
#undef PUT

#define T float
#define NAME(f) f##_fp32
#define GET(v) (v)
#define PUT(v) (v)
#include "elementwise.h"
#include "paged.h"

#include "attention.h"
#include "quantized.h"
#include "packed.h"
#include "block.h"
