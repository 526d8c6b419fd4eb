/* What both loops over time share. Each part has some of the samples for the whole sequence, and so
   needs nothing from the others until the gradients of the weights are added up. */

struct sizes {
  int64_t G, blocks, padded, K; /* weight blocks, blocks of a step, padded H, activations */
  int64_t a_row, x_row, h_row;  /* of padded rows: pre-activations, inputs, states */
  int64_t x_padded, seen_row;   /* inputs and states side by side, states from x_padded on */
  int64_t gates, gates_row;     /* i, f and o side by side where the next step sees them, or 0 */
  int64_t parts, chunk;         /* chunk: steps whose weight gradients are formed together */
  int64_t of_part;              /* numbers of scratch for each part */
};

struct run {
  const struct pass *pass;
  struct sizes sizes;
  real *scratch;                          /* of the first part */
  real *w, *r, *r_n, *bias, *peepholes;   /* packed and padded weights */
  real *gg, *gg_o;                        /* between gates: what goes to i and f, and to o */
  const real *initial[3];                 /* of h and c, [B, H], and of gates that are seen */
};

/* Where the sums of a part lie, within its scratch. */
struct sums {
  real *by_w, *by_r, *by_bias, *by_peepholes, *by_gg;
};

INLINE int64_t padded_to(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
/* An odd number of vectors, so that neighbouring rows do not meet in the same sets of a cache. */
INLINE int64_t odd_row(int64_t size) {
  int64_t vectors = padded_to(size, V) / V;
  return (vectors | 1) * V;
}
INLINE int64_t bits(int64_t set) {
  int64_t count = 0;
  for (; set; set &= set - 1)
    count++;
  return count;
}
INLINE int64_t peephole_count(const struct pass *p) {
  return p->cell == LSTM && p->weight_ch ? bits(p->gates & (INPUT | FORGET | OUTPUT)) : 0;
}
INLINE int is_gru(const struct pass *p) { return p->cell == GRU || p->cell == GRU_2014; }

static struct sizes sizes_of(const struct pass *p) {
  struct sizes s;
  s.padded = padded_to(p->hidden, V);
  s.G = p->cell == LSTM ? bits(p->gates & (INPUT | FORGET | CELL | OUTPUT)) : is_gru(p) ? 3 : 1;
  s.blocks = p->cell == GRU ? 4 : s.G;
  s.K = p->cell == LSTM ? s.G + 1 : is_gru(p) ? 4 : 0;
  s.a_row = odd_row(s.blocks * s.padded);
  s.x_row = odd_row(p->inputs);
  s.h_row = odd_row(p->hidden);
  s.x_padded = padded_to(p->inputs, V);
  s.seen_row = odd_row(s.x_padded + p->hidden);
  s.gates = p->weight_gg ? 3 * p->hidden : 0;
  s.gates_row = s.gates ? odd_row(s.gates) : 0;
  int64_t work = p->steps * p->samples * s.G * p->hidden * (p->inputs + p->hidden);
  s.parts = work < SMALL_WORK ? 1 : p->parts < p->samples ? p->parts : p->samples;
  if (s.parts < 1)
    s.parts = 1;
  int64_t samples = (p->samples + s.parts - 1) / s.parts;
  s.chunk = samples ? (CHUNK_ROWS + samples - 1) / samples : 1;
  if (s.chunk > p->steps)
    s.chunk = p->steps;
  return s;
}

INLINE real *taken(real **from, int64_t count) {
  real *here = *from;
  *from += padded_to(count, 64);
  return here;
}

/* Memory for everything, aligned; the caller frees *raw. */
static real *memory(int64_t count, void **raw) {
  *raw = malloc((size_t)count * sizeof(real) + 128);
  return *raw ? (real *)(((uintptr_t)*raw + 127) & ~(uintptr_t)127) : 0;
}

static void in_parts(const struct pass *p, int64_t parts, range_function f, void *context) {
  if (parts < 2 || !p->parallel || p->parallel(0, parts, 1, f, context))
    f(0, parts, context);
}

static void pad(real *to, const real *from, int64_t blocks, int64_t size, int64_t padded) {
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t k = 0; k < padded; k++)
      to[block * padded + k] = from && k < size ? from[block * size + k] : 0;
}

INLINE int64_t time_of(const struct pass *p, int64_t step) {
  return p->reverse ? p->steps - 1 - step : step;
}

/* Padded with zeros to whole vectors. */
INLINE void copy_row(real *to, const real *from, int64_t size) {
  for (int64_t j = 0; j < size; j += V)
    store(to + j, load_some(from + j, size - j));
}

/* The initial state, or zeros. */
static void find_initial(const struct pass *p, struct run *run, real **free_) {
  int64_t count = p->samples * (run->sizes.gates ? run->sizes.gates : p->hidden);
  const real *given[3] = {p->h_0, p->c_0, p->gates_0};
  real *zeros = taken(free_, count);
  memset(zeros, 0, (size_t)count * sizeof(real));
  for (int k = 0; k < 3; k++)
    run->initial[k] = given[k] ? given[k] : zeros;
}

/* Where gate 0, 1 or 2 of i, f and o is among the blocks of all gates. */
INLINE int64_t block_of_gate(int64_t gate) { return gate < 2 ? gate : 3; }

/* The gates that some samples see at a step, those of the step before. */
static void seen_gates(
    const struct run *run, int64_t first, int64_t rows, int64_t step, real *to) {
  const struct pass *p = run->pass;
  const struct sizes *s = &run->sizes;
  int64_t H = p->hidden, P = s->padded, before = time_of(p, step - 1) * p->samples;
  for (int64_t sample = first; sample < first + rows; sample++, to += s->gates_row) {
    const real *kept = (const real *)p->kept + (before + sample) * s->K * P;
    for (int64_t gate = 0; step && gate < 3; gate++)
      copy_row(to + gate * H, kept + block_of_gate(gate) * P, H);
    if (!step)
      copy_row(to, run->initial[2] + sample * s->gates, s->gates);
  }
}
