/* Runs the library's calls for another process (proxy.c): in an emulator, on a processor that this
   machine is not.

   Addresses stay what they are there. A page of the other process is fetched when it is first
   touched, and what a call has written goes back after it. */

#define _GNU_SOURCE
#include "calls.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define MOST_PAGES 65536

struct page {
  char *at, *before; /* what it held, once something has been written to it */
};

static struct page pages[MOST_PAGES];
static int64_t count;
static int memory = -1; /* of the other process */

static void fail(const char *what) {
  fprintf(stderr, "worker: %s\n", what);
  _exit(1);
}

static char *room(char *at, int access) {
  char *page = mmap(at, PAGE, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED || (at && page != at))
    fail("an address of the other process is taken here; run it again");
  return page;
}

static void touched(int number, siginfo_t *info, void *context) {
  char *at = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
  (void)number;
  (void)context;
  for (int64_t k = count - 1; k >= 0; k--)
    if (pages[k].at == at) {
      if (pages[k].before || mprotect(at, PAGE, PROT_READ | PROT_WRITE))
        fail("a page cannot be written");
      pages[k].before = room(0, PROT_READ | PROT_WRITE);
      memcpy(pages[k].before, at, PAGE);
      return;
    }
  if (count == MOST_PAGES)
    fail("a call touches too much memory");
  room(at, PROT_READ | PROT_WRITE);
  if (pread64(memory, at, PAGE, (off64_t)(uintptr_t)at) != PAGE)
    fail("a call touches memory that is nobody's");
  mprotect(at, PAGE, PROT_READ);
  pages[count++].at = at;
}

/* Writes back what has changed, and forgets all pages. */
static void give_back(void) {
  for (; count; count--) {
    struct page page = pages[count - 1];
    for (int64_t k = 0; page.before && k < PAGE; k++) {
      int64_t first = k;
      while (k < PAGE && page.at[k] != page.before[k])
        k++;
      size_t size = (size_t)(k - first);
      off64_t to = (off64_t)(uintptr_t)(page.at + first);
      if (size && pwrite64(memory, page.at + first, size, to) != (ssize_t)size)
        fail("a result cannot be written");
    }
    if (page.before)
      munmap(page.before, PAGE);
    munmap(page.at, PAGE);
    pages[count - 1] = (struct page){0};
  }
}

/* In place of torch_parallel_for: the last part first, as their order may make no difference. */
static int32_t in_turn(
    int64_t begin, int64_t end, int64_t grain, range_function function, void *context) {
  (void)grain;
  for (int64_t k = end - 1; k >= begin; k--)
    function(k, k + 1, context);
  return 0;
}

int main(int arguments, char **argument) {
  void *library = arguments == 2 ? dlopen(argument[1], RTLD_NOW) : 0;
  if (!library)
    fail(arguments == 2 ? dlerror() : "usage: worker LIBRARY");
  struct sigaction action = {.sa_sigaction = touched, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, 0);
  struct call call;
  while (read(0, &call, sizeof call) == sizeof call) {
    struct answer answer = {0};
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/mem", (long long)call.process);
    memory = open(path, O_RDWR);
    if (memory < 0)
      fail("the memory of the other process cannot be opened");
    void *function = dlsym(library, call.name);
    if (!function)
      fail(dlerror());
#define IS(other) (!strcmp(call.name, "retrograde_" other))
    if (IS("interface")) {
      int64_t (*run)(void) = function;
      answer.number = run();
    }
    if (IS("bytes")) {
      int64_t (*run)(int64_t) = function;
      answer.number = run(call.set);
    }
    if (IS("set")) {
      const char *(*run)(int64_t) = function, *name = run(call.set);
      snprintf(answer.text, sizeof answer.text, "%s", name ? name : "");
    }
/* A copy of the struct, in which the parts are run here. */
#define RUN(name, type)                                                                            \
  if (IS(#name)) {                                                                                 \
    int64_t (*run)(int64_t, int64_t, const struct type *) = function;                              \
    struct type copy = *(const struct type *)(uintptr_t)call.fields;                               \
    copy.parallel = copy.parallel ? in_turn : 0;                                                   \
    answer.number = run(call.set, call.is_double, &copy);                                          \
  }
    EACH_PASS(RUN)
    give_back();
    close(memory);
    if (write(1, &answer, sizeof answer) != sizeof answer)
      fail("nobody takes the answer");
  }
  return 0;
}
