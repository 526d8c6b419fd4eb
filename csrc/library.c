/* What the library exports: which instruction sets this processor has, and their passes. */

#include "recurrence.h"

#define SET(name) extern const struct kernels retrograde_##name##_float, retrograde_##name##_double;
SET(baseline)
#if defined(RETROGRADE_AVX2)
SET(avx2)
#endif
#if defined(RETROGRADE_AVX512)
SET(avx512)
#endif

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

struct set {
  const char *name;
  int (*runs_here)(void);
  const struct kernels *of_float, *of_double;
};

static int always(void) { return 1; }

#if defined(RETROGRADE_AVX2)
static int has_avx2(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#if defined(RETROGRADE_AVX512)
static int has_avx512(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}
#endif

#if defined(__aarch64__)
#define BASELINE "neon"
#else
#define BASELINE "baseline"
#endif

/* Those that setup.py had compiled. */
static const struct set sets[] = {
    {BASELINE, always, &retrograde_baseline_float, &retrograde_baseline_double},
#if defined(RETROGRADE_AVX2)
    {"avx2", has_avx2, &retrograde_avx2_float, &retrograde_avx2_double},
#endif
#if defined(RETROGRADE_AVX512)
    {"avx512", has_avx512, &retrograde_avx512_float, &retrograde_avx512_double},
#endif
};

/* The number of the sources that it was built from (compiled/sources.py). */
EXPORTED int64_t retrograde_interface(void) { return RETROGRADE_SOURCES; }

/* The name of an instruction set that this processor has, NULL for any other number. */
EXPORTED const char *retrograde_set(int64_t set) {
  int64_t count = sizeof sets / sizeof *sets;
  return set >= 0 && set < count && sets[set].runs_here() ? sets[set].name : 0;
}

static const struct kernels *kernels_of(int64_t set, int64_t is_double) {
  return is_double ? sets[set].of_double : sets[set].of_float;
}

/* The bytes of a vector: rows of activations are padded to whole vectors. */
EXPORTED int64_t retrograde_bytes(int64_t set) { return kernels_of(set, 0)->bytes; }

EXPORTED int64_t retrograde_forward(int64_t set, int64_t is_double, const struct pass *pass) {
  return kernels_of(set, is_double)->forward(pass);
}

EXPORTED int64_t retrograde_backward(int64_t set, int64_t is_double, const struct pass *pass) {
  return kernels_of(set, is_double)->backward(pass);
}

EXPORTED int64_t retrograde_learn(int64_t set, int64_t is_double, const struct online *online) {
  return kernels_of(set, is_double)->learn(online);
}

EXPORTED int64_t retrograde_scan(int64_t set, int64_t is_double, const struct scan *scan) {
  return kernels_of(set, is_double)->scan(scan);
}

EXPORTED int64_t retrograde_crossings(
    int64_t set, int64_t is_double, const struct crossings *crossings) {
  return kernels_of(set, is_double)->crossings(crossings);
}

EXPORTED int64_t retrograde_routes(int64_t set, int64_t is_double, const struct routes *routes) {
  return kernels_of(set, is_double)->routes(routes);
}

EXPORTED int64_t retrograde_sizes(
    int64_t set, int64_t is_double, const struct sizes_of_rows *sizes) {
  return kernels_of(set, is_double)->sizes(sizes);
}

EXPORTED int64_t retrograde_sums(
    int64_t set, int64_t is_double, const struct sums_of_rows *sums) {
  return kernels_of(set, is_double)->sums(sums);
}
