/* Vectors, loads with a remainder, and activation functions.

   The polynomials come from scripts/activation_fit.py; errors are measured by tests/compiled. */

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real unaligned_vec
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef integer int_vec __attribute__((vector_size(VECTOR_BYTES)));

#define V ((int64_t)(VECTOR_BYTES / sizeof(real)))

/* Operations that vector extensions have no word for, where one instruction does them. */
#if defined(__AVX512F__) && defined(RETROGRADE_DOUBLE)
typedef __m512d wide;
typedef __mmask8 some;
#define WIDE(operation) _mm512_##operation##_pd
#elif defined(__AVX512F__)
typedef __m512 wide;
typedef __mmask16 some;
#define WIDE(operation) _mm512_##operation##_ps
#endif

INLINE vec load(const real *from) { return *(const unaligned_vec *)from; }
INLINE void store(real *to, vec value) { *(unaligned_vec *)to = value; }

/* To memory past the caches, for what is read much later, and what need not be evicted from them
   then; `to` is aligned to a vector. Other threads see it after `streamed`. */
INLINE void stream(real *to, vec value) {
#if defined(__AVX512F__)
  _mm512_stream_si512((void *)to, (__m512i)value);
#elif defined(__AVX__)
  _mm256_stream_si256((void *)to, (__m256i)value);
#elif defined(__SSE2__)
  _mm_stream_si128((void *)to, (__m128i)value);
#else
  store(to, value);
#endif
}
INLINE void streamed(void) {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

INLINE vec all(real value) { return value - (vec){0}; }

/* The first n numbers, and zeros. */
INLINE vec load_some(const real *from, int64_t n) {
  if (n >= V)
    return load(from);
#if defined(__AVX512F__)
  return (vec)WIDE(maskz_loadu)((some)((1u << n) - 1), from);
#endif
  vec value = {0};
  for (int64_t k = 0; k < n; k++)
    value[k] = from[k];
  return value;
}

INLINE void store_some(real *to, vec value, int64_t n) {
  if (n >= V) {
    store(to, value);
    return;
  }
#if defined(__AVX512F__)
  WIDE(mask_storeu)(to, (some)((1u << n) - 1), (wide)value);
  return;
#endif
  for (int64_t k = 0; k < n; k++)
    to[k] = value[k];
}

INLINE real sum_of(vec x) {
  real lanes[V];
  store(lanes, x);
  UNROLL for (int64_t half = V / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; k++)
      lanes[k] += lanes[k + half];
  return lanes[0];
}

INLINE vec first(vec value, int64_t n) {
  for (int64_t k = n; k < V; k++)
    value[k] = 0;
  return value;
}

INLINE vec choose(int_vec where, vec yes, vec no) {
  return (vec)(((int_vec)yes & where) | ((int_vec)no & ~where));
}

/* The size of a number as its bits, which ascend with it, infinity and NaN last. */
INLINE int_vec size_bits(vec value) {
  return (int_vec)value & (integer)(((uint64_t)1 << (8 * sizeof(real) - 1)) - 1);
}
INLINE int_vec larger(int_vec one, int_vec other) {
  return (int_vec)choose(one > other, (vec)one, (vec)other);
}

/* The largest of some sizes; NaN if one is not finite. */
INLINE real largest_of(int_vec sizes) {
  integer lanes[V];
  memcpy(lanes, &sizes, sizeof lanes);
  UNROLL for (int64_t half = V / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; k++)
      lanes[k] = lanes[k] > lanes[k + half] ? lanes[k] : lanes[k + half];
  real found;
  memcpy(&found, lanes, sizeof found);
  return found + (found - found);
}

/* A NaN stays one: comparisons with it are false, and of a NaN and another the latter operand is
   taken. */
#if defined(__AVX512F__)
INLINE vec at_most(vec x, real limit) { return (vec)WIDE(min)((wide)all(limit), (wide)x); }
INLINE vec at_least(vec x, real limit) { return (vec)WIDE(max)((wide)all(limit), (wide)x); }
#else
INLINE vec at_most(vec x, real limit) { return choose((int_vec)(x > limit), all(limit), x); }
INLINE vec at_least(vec x, real limit) { return choose((int_vec)(x < limit), all(limit), x); }
#endif

/* x = n ln 2 + r with |r| <= ln(2) / 2; returns exp(r) - 1. Adding ROUNDING, 1.5 times the power of
   two at which the spacing is 1, rounds to an integer, which the low bits then hold. */
INLINE vec reduced_expm1(vec x, int_vec *exponent) {
  vec shifted = x * LOG2_E + ROUNDING;
  vec n = shifted - ROUNDING;
  *exponent = (int_vec)shifted - (int_vec)all(ROUNDING);
  vec r = (x - n * LN2_HIGH) - n * LN2_LOW;
  vec q = all(EXP[EXP_DEGREE]);
  for (int k = EXP_DEGREE - 1; k >= 0; k--)
    q = q * r + EXP[k];
  return (r * r) * q + r;
}

INLINE vec power_of_two(int_vec exponent) {
  return (vec)((exponent + EXPONENT_BIAS) << MANTISSA_BITS);
}

/* The power of two is applied in halves, as it may itself be out of range. */
INLINE vec exponential(vec x) {
  int_vec exponent;
  vec p = reduced_expm1(at_most(at_least(x, -EXP_LIMIT), EXP_LIMIT), &exponent);
#if defined(__AVX512F__)
  return (vec)WIDE(scalef)((wide)(1 + p), (wide)__builtin_convertvector(exponent, vec));
#endif
  int_vec half = exponent >> 1;
  return (1 + p) * power_of_two(half) * power_of_two(exponent - half);
}

/* exp(x) - 1 where exp(x) is in the normal range. */
INLINE vec expm1_in_range(vec x) {
  int_vec exponent;
  vec p = reduced_expm1(x, &exponent);
  vec scale = power_of_two(exponent);
  return scale * p + (scale - 1);
}

INLINE vec sigmoid(vec x) { return 1 / (1 + exponential(-x)); }

/* e / (e + 2) with e = exp(2|x|) - 1, and the sign of x, also that of 0. */
INLINE vec hyperbolic_tangent(vec x) {
  int_vec sign = (int_vec)x & (int_vec)all((real)-0.0);
  vec size = (vec)((int_vec)x ^ sign);
  vec e = expm1_in_range(at_most(size + size, TANH_LIMIT));
  return (vec)((int_vec)(e / (e + 2)) | sign);
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + e) with e = exp(-|x|), and x itself above SOFTPLUS_LINE, as
   torch has it. log(1 + e) = 2 (s + s^3 / 3 + s^5 / 5 + ...) with s = e / (2 + e) <= 1/3. */
INLINE vec softplus(vec x) {
  vec e = exponential(choose((int_vec)(x < 0), x, -x)), s = e / (2 + e), square = s * s;
  vec q = {0};
  for (int k = LOG_TERMS - 1; k > 0; k--)
    q = q * square + (real)2 / (2 * k + 1);
  vec y = choose((int_vec)(x < 0), (vec){0}, x) + (s + s + s * square * q);
  return choose((int_vec)(x > SOFTPLUS_LINE), x, y);
}

/* 1 - exp(-y), the slope of softplus at the value y. */
INLINE vec softplus_slope(vec y) {
  return choose((int_vec)(y > SOFTPLUS_LINE), all(1), -expm1_in_range(-at_most(y, SOFTPLUS_LINE)));
}

INLINE vec activated(int64_t activation, vec x) {
  switch (activation) {
  case TANH:
    return hyperbolic_tangent(x);
  case RELU:
    return choose((int_vec)(x < 0), (vec){0}, x);
  case SIGMOID:
    return sigmoid(x);
  case WIDE_SIGMOID:
    return 4 * sigmoid(x) - 2;
  case CENTRED_SIGMOID:
    return 2 * sigmoid(x) - 1;
  case SOFTPLUS:
    return softplus(x);
  case RELU_SIGMOID:
    return choose((int_vec)(x < 0), sigmoid(x), x + (real)0.5);
  default:
    return x;
  }
}

/* The slope in terms of the value. */
INLINE vec slope(int64_t activation, vec y) {
  switch (activation) {
  case TANH:
    return 1 - y * y;
  case RELU:
    return choose((int_vec)(y > 0), all(1), (vec){0});
  case SIGMOID:
    return y * (1 - y);
  case WIDE_SIGMOID:
    return 1 - y * y / 4;
  case CENTRED_SIGMOID:
    return (1 - y * y) / 2;
  case SOFTPLUS:
    return softplus_slope(y);
  case RELU_SIGMOID:
    return choose((int_vec)(y < (real)0.5), y * (1 - y), all(1));
  default:
    return all(1);
  }
}
