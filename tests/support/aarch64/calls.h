/* What proxy.c and worker.c say to each other. */

#include "../../../csrc/recurrence.h"

struct call {
  char name[32];
  int64_t process, set, is_double, fields;
};

struct answer {
  int64_t number;
  char text[32];
};
