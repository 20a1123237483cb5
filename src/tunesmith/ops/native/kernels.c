/* Fused operations: one pass over memory where PyTorch makes several. The Python side, with the reference that each is
 * tested against, is in tunesmith/ops. Every function takes the number of threads to use. Arrays are row-major and
 * contiguous unless strides are given. bf16 is read into fp32, computed there, and rounded once to nearest even. */

#include "numbers.h"

#define T bf16
#define GET(v) from_bf16(v)
#define PUT(v) to_bf16(v)
#define NAME(f) f##_bf16
#include "elementwise.h"
#include "paged.h"
#undef NAME
#define NAME(f) f##_int8_bf16
#define IN_INT8
#include "paged.h"
#undef IN_INT8
#undef NAME
#undef T
#undef GET
#undef PUT

#define T float
#define GET(v) (v)
#define PUT(v) (v)
#define NAME(f) f##_fp32
#include "elementwise.h"
#include "paged.h"
#undef NAME
#define NAME(f) f##_int8_fp32
#define IN_INT8
#include "paged.h"
#undef IN_INT8
#undef NAME
#undef T
#undef GET
#undef PUT

#include "attention.h"
#include "attention_fp32.h"
#include "quantized.h"
#include "packed.h"
#include "lora.h"
#include "block.h"
#include "inner_products.h"

/* Of the sources that this was compiled from: see compiled_sources.py. */
uint32_t source_checksum(void) { return SOURCE_CHECKSUM; }
