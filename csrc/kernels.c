/* The passes of all cells for one instruction set and one type of numbers.

   Compiled once for each of them (setup.py has the table), with RETROGRADE_NAME the name of what it
   defines, and RETROGRADE_DOUBLE for double. The vector extensions of GCC and Clang are all that is
   used; no option may change what arithmetic means (-ffast-math). */

#include "recurrence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "compile without -ffast-math: NaN and infinity must stay what they are"
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define NR 4
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define NR 2
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define NR 4
#else
#define VECTOR_BYTES 16
#define NR 2
#endif
#define MR 6
#define DEPTH 384          /* how far k runs before a tile goes back to memory */
#define COLUMNS (8 * MR)   /* of what is summed over rows, that stay in the cache together */
#define CHUNK_ROWS 256     /* steps times samples whose weight gradients are formed together */
#define SMALL_WORK 1000000 /* multiplications, below which a second thread does not pay */

#define INLINE static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#if defined(__SSE2__)
#include <immintrin.h>
/* Numbers below the normal range become 0: arithmetic on them is slow on some processors. */
INLINE int64_t flush_denormals(void) {
  int64_t control = _mm_getcsr();
  _mm_setcsr((unsigned)control | 0x8040);
  return control;
}
INLINE void restore_denormals(int64_t control) { _mm_setcsr((unsigned)control); }
#elif defined(__aarch64__)
INLINE int64_t flush_denormals(void) {
  int64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("msr fpcr, %0" : : "r"(control | (1 << 24)));
  return control;
}
INLINE void restore_denormals(int64_t control) {
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
}
#else
INLINE int64_t flush_denormals(void) { return 0; }
INLINE void restore_denormals(int64_t control) { (void)control; }
#endif

#ifdef RETROGRADE_DOUBLE
typedef double real;
typedef int64_t integer;
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define ROUNDING 0x1.8p+52
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#define EXP_LIMIT 746.0
#define TANH_LIMIT 44.0
#define LOG_TERMS 17 /* 3^-34 / 35 is below the rounding */
static const real EXP[] = {
    0x1.0000000000001p-1,  0x1.5555555555558p-3,  0x1.5555555553d67p-5,  0x1.111111110f808p-7,
    0x1.6c16c1788a1f2p-10, 0x1.a01a01b009f52p-13, 0x1.a019b913fad3ap-16, 0x1.71ddf6ba48e19p-19,
    0x1.28917d2f3a399p-22, 0x1.af631ec60423bp-26,
};
#else
typedef float real;
typedef int32_t integer;
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e400p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define ROUNDING 0x1.8p+23f
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#define EXP_LIMIT 104.0f
#define TANH_LIMIT 20.0f
#define LOG_TERMS 8
static const real EXP[] = {
    0x1.0000000000000p-1f, 0x1.5554dc0000000p-3f, 0x1.5554b80000000p-5f,
    0x1.120b660000000p-7f, 0x1.6d753a0000000p-10f,
};
#endif
#define SOFTPLUS_LINE 20 /* above, torch takes softplus for a line */
#define EXP_DEGREE ((int)(sizeof EXP / sizeof *EXP) - 1)

#include "arithmetic.h"
#include "products.h"
#include "cells.h"
#include "passes.h"
#include "forward_pass.h"
#include "passed_over.h"
#include "backward_pass.h"
#include "online.h"
#include "step.h"
#include "summing.h"
#include "scan.h"
#include "pushing.h"
#include "sizes.h"
#include "sums.h"
#include "crossings.h"
#include "routes.h"

const struct kernels RETROGRADE_NAME = {VECTOR_BYTES, forward, backward, scan, crossings,
                                        routes,       sizes,   sums,     learn};
