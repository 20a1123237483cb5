/* The passes over memory that PyTorch makes several of, each made once. Python's side, with the definitions that these
 * are held to, is in tunesmith/ops. Every function takes the number of threads to use; arrays are row-major and, but
 * where strides are given, without gaps. bf16 is read into fp32, computed there, and rounded to nearest even once. */

#include "numbers.h"

#define T bf16
#define NAME(f) f##_bf16
#define GET(v) from_bf16(v)
#define PUT(v) to_bf16(v)
#include "elementwise.h"
#undef T
#undef NAME
#undef GET
#undef PUT

#define T float
#define NAME(f) f##_fp32
#define GET(v) (v)
#define PUT(v) (v)
#include "elementwise.h"

#include "attention.h"
#include "quantized.h"
