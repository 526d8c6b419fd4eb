/* What proxy.c and worker.c say to each other. */

#include "../../../csrc/recurrence.h"

/* The functions that take a struct, and which one. */
#define EACH_PASS(_)                                                                               \
  _(forward, pass)                                                                                 \
  _(backward, pass)                                                                                \
  _(learn, online)                                                                                 \
  _(scan, scan)                                                                                    \
  _(crossings, crossings)                                                                          \
  _(routes, routes)                                                                                \
  _(sizes, sizes_of_rows)                                                                          \
  _(sums, sums_of_rows)

struct call {
  char name[32];
  int64_t process, set, is_double, fields;
};

struct answer {
  int64_t number;
  char text[32];
};
