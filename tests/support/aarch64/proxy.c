/* Stands where Python expects the library, and has WORKER run what is called (worker.c). */

#define _GNU_SOURCE
#include "calls.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static pid_t owner; /* a process that was forked gets a worker of its own */
static int worker;

static void start(void) {
  static char *const command[] = {WORKER, 0};
  int ends[2];
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
    abort();
  if (!fork()) {
    dup2(ends[1], 0);
    dup2(ends[1], 1);
    execvp(*command, command);
    perror(*command);
    _exit(127);
  }
  close(ends[1]);
  worker = ends[0];
  owner = getpid();
}

static struct answer run(const char *name, int64_t set, int64_t is_double, const void *fields) {
  struct call call = {.process = getpid(), .set = set, .is_double = is_double};
  struct answer answer;
  snprintf(call.name, sizeof call.name, "retrograde_%s", name);
  call.fields = (int64_t)(uintptr_t)fields;
  pthread_mutex_lock(&one_at_a_time);
  if (owner != getpid())
    start();
  if (write(worker, &call, sizeof call) != sizeof call ||
      recv(worker, &answer, sizeof answer, MSG_WAITALL) != sizeof answer) {
    fprintf(stderr, "the worker has ended in retrograde_%s\n", name);
    abort();
  }
  pthread_mutex_unlock(&one_at_a_time);
  return answer;
}

int64_t retrograde_interface(void) { return run("interface", 0, 0, 0).number; }
int64_t retrograde_bytes(int64_t set) { return run("bytes", set, 0, 0).number; }

const char *retrograde_set(int64_t set) {
  static char names[8][32];
  if (set < 0 || set >= 8)
    return 0;
  strcpy(names[set], run("set", set, 0, 0).text);
  return *names[set] ? names[set] : 0;
}

#define CALL(name, type)                                                                           \
  int64_t retrograde_##name(int64_t set, int64_t is_double, const struct type *fields) {           \
    return run(#name, set, is_double, fields).number;                                              \
  }
EACH_PASS(CALL)
