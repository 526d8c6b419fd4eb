/* The recursion of scan.h with rows told apart by how often their paths crossed recurrent weights.

       v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

   The program gives A^T v and, behind it, R^T v of every row. Each class n of an entry has an
   exponent of its own, so that what crosses to the next class is multiplied by a power of two; the
   last class keeps what crosses from it. */

struct crossings_run {
  const struct crossings *crossings;
  struct runner runner;
  real *largest; /* sizes of entries, [B, N, K] */
  real *scratch;
  int64_t of_task;
  struct tasks tasks; /* parts of the entries */
};

/* A row to where it is asked for, and the size of its largest entry; NaN if one is not finite. */
INLINE real hand_out_largest(const real *from, int64_t size, real *to) {
  vec most = {0}, nothing = {0};
  for (int64_t j = 0; j < size; j += V) {
    vec value = load_some(from + j, size - j);
    store_some(to + j, value, size - j);
    vec large = choose((int_vec)(value < 0), -value, value);
    most = choose((int_vec)(large > most), large, most);
    nothing += value - value;
  }
  real found = 0;
  for (int64_t k = 0; k < V; k++)
    found = most[k] > found ? most[k] : found;
  return found + sum_of(nothing);
}

/* The classes of an entry at the step before: what stays in each, and what crossed into it. */
INLINE void cross(
    int64_t classes, int64_t size, const real *moves, const real *passed, const real *from,
    int64_t from_row, real *to, int64_t to_row) {
  for (int64_t n = 0; n < classes; n++) {
    const real *stays = from + n * from_row, *crosses = stays + size;
    for (int64_t j = 0; j < size; j += V) {
      vec sum = load(stays + j);
      if (n > 0)
        sum += load(crosses - from_row + j) * all(moves[n - 1]);
      if (n == classes - 1)
        sum += load(crosses + j);
      store(to + n * to_row + j, passed ? sum * load_some(passed + j, size - j) : sum);
    }
  }
}

static void crossings_tasks(int64_t begin, int64_t end, void *context) {
  const struct crossings_run *run = context;
  const struct crossings *p = run->crossings;
  const int64_t B = p->samples, S = p->size, K = p->steps, C = p->classes, E = p->entries[0];
  const int64_t control = flush_denormals();
  for (int64_t task = begin; task < end; task++) {
    int64_t sample, samples, first, most;
    task_of(&run->tasks, task, B, E, &sample, &samples, &first, &most);
    real *free_ = run->scratch + task * run->of_task;
    struct work_rows w = work_on(&run->runner, S, samples, most * C, 0, &free_);
    const struct rows here = w.registers[0];
    const int64_t wide = odd_row(2 * S + V);
    const struct rows both = {taken(&free_, samples * most * C * wide), most * C * wide, wide};

    for (int64_t b = 0; b < samples; b++)
      for (int64_t n = 0; n < between(p->started - first, most) * C; n++)
        memcpy(
            here.at + b * here.sample + n * here.row,
            (const real *)p->start + ((first * C + n) * B + sample + b) * S,
            (size_t)S * sizeof(real));

    for (int64_t k = K - 1; k >= 0; k--) {
      const int64_t entries = between(p->entries[k] - first, most);
      for (int64_t b = 0; b < samples; b++)
        for (int64_t n = 0; n < most * C; n++) {
          const int64_t row = first * C + n;
          real *to = (real *)p->values + ((row * K + k) * B + sample + b) * S;
          real *largest = run->largest + ((sample + b) * E * C + row) * K + k;
          if (n < entries * C)
            *largest = hand_out_largest(here.at + b * here.sample + n * here.row, S, to);
          else {
            memset(to, 0, (size_t)S * sizeof(real));
            *largest = 0;
          }
        }
      if (k == 0 && !p->back)
        break;
      if (entries)
        through_step(
            &run->runner, &w, both, p->first + k, sample, samples, entries * C,
            p->entries[k] * C <= FEW_ROWS);
      const real *passed = p->boundaries ? (const real *)p->boundaries[k] : 0;
      for (int64_t b = 0; b < samples; b++)
        for (int64_t e = 0; e < entries; e++)
          cross(
              C, S, (const real *)p->moves + (first + e) * (C - 1),
              passed ? passed + (sample + b) * S : 0, both.at + b * both.sample + e * C * wide,
              wide, here.at + b * here.sample + e * C * here.row, here.row);
      /* What the loss gives has crossed nothing: a new entry, or part of the newest one. */
      const int64_t before = k ? p->entries[k - 1] : 0, newest = before - 1 - first;
      if (!p->given || newest < 0 || newest >= most)
        continue;
      for (int64_t b = 0; b < samples; b++) {
        const real *given = (const real *)p->given + ((k - 1) * B + sample + b) * S;
        real *to = here.at + b * here.sample + newest * C * here.row;
        if (before > p->entries[k])
          memset(to, 0, (size_t)(C * here.row) * sizeof(real));
        for (int64_t j = 0; j < S; j++)
          to[j] += given[j];
      }
    }
    for (int64_t b = 0; p->back && b < samples; b++)
      for (int64_t n = 0; n < most * C; n++)
        memcpy(
            (real *)p->back + ((first * C + n) * B + sample + b) * S,
            here.at + b * here.sample + n * here.row, (size_t)S * sizeof(real));
  }
  restore_denormals(control);
}

static int64_t crossings(const struct crossings *p) {
  const int64_t B = p->samples, K = p->steps, C = p->classes, E = p->entries[0], N = E * C;
  struct crossings_run run = {.crossings = p, .runner = runner_of(&p->program)};
  int64_t work = run.runner.work * N * B * K;
  int64_t threads = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  run.tasks = tasks_of(B, E, N, threads);
  int64_t tasks = run.tasks.groups * run.tasks.parts;
  int64_t samples = (B + run.tasks.groups - 1) / run.tasks.groups;
  int64_t rows = (E + run.tasks.parts - 1) / run.tasks.parts * C;
  run.of_task = of_work(&run.runner, p->size, samples, rows, 0) +
                samples * rows * odd_row(2 * p->size + V) + 64;
  int64_t of_largest = padded_to(B * N * K, 64);
  void *raw;
  real *free_ = memory(of_largest + run.runner.of_packed + tasks * run.of_task, &raw);
  if (!free_)
    return 1;
  run.largest = taken(&free_, of_largest);
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (tasks < 2 || threads < 2 || p->parallel(0, tasks, 1, crossings_tasks, &run))
    crossings_tasks(0, tasks, &run);
  for (int64_t i = 0; i < N * K; i++) {
    real most = 0;
    for (int64_t b = 0; b < B; b++) {
      real of_sample = run.largest[b * N * K + i];
      most = of_sample <= most ? most : of_sample; /* NaN stays */
      if (most != most)
        break;
    }
    ((real *)p->sizes)[i] = most;
  }
  free(raw);
  return 0;
}
