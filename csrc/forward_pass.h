/* Forward through time: the states, and what each step keeps for the way back. */

static void forward_parts(int64_t begin, int64_t end, void *context) {
  const struct run *run = context;
  const struct pass *p = run->pass;
  const struct sizes s = run->sizes;
  const int64_t H = p->hidden, P = s.padded, B = p->samples;
  real *all_h = p->h, *all_c = p->c ? p->c : p->h; /* a cell without c never reads it */
  for (int64_t part = begin; part < end; part++) {
    int64_t first = B * part / s.parts, rows = B * (part + 1) / s.parts - first;
    real *free_ = run->scratch + part * s.of_part;
    real *a = taken(&free_, rows * s.a_row), *q = taken(&free_, rows * s.h_row);
    real *unkept = taken(&free_, rows * (s.K ? s.K : 1) * P);
    real *gates = taken(&free_, rows * s.gates_row);
    for (int64_t step = 0; step < p->steps; step++) {
      int64_t t = time_of(p, step), now = (t * B + first) * H;
      int64_t before = (time_of(p, step - 1) * B + first) * H;
      const real *x = (const real *)p->x + t * p->x_step + first * p->x_sample;
      struct ahead at = {
          .a = a,
          .peepholes = run->peepholes,
          .h_before = step ? all_h + before : run->initial[0] + first * H,
          .c_before = step ? all_c + before : run->initial[1] + first * H,
          .h = all_h + now,
          .c = all_c + now,
          .kept = p->kept ? (real *)p->kept + (t * B + first) * s.K * P : unkept,
          .q = q,
          .rows = rows,
          .hidden = H,
          .padded = P,
          .a_row = s.a_row,
          .kept_row = s.K * P,
          .q_row = s.h_row,
      };
      const real *h = at.h_before;
      product(rows, s.G * P / V, p->inputs, x, p->x_sample, run->w, run->bias, 0, a, s.a_row);
      int64_t together = is_gru(p) ? 2 : s.G; /* blocks that R h is added to */
      product(rows, together * P / V, H, h, H, run->r, a, s.a_row, a, s.a_row);
      if (s.gates) {
        real *o = a + 3 * P;
        seen_gates(run, first, rows, step, gates);
        product(rows, 2 * P / V, s.gates, gates, s.gates_row, run->gg, a, s.a_row, a, s.a_row);
        product(rows, P / V, s.gates, gates, s.gates_row, run->gg_o, o, s.a_row, o, s.a_row);
      }
      switch (p->cell) {
      case LSTM:
        lstm_ahead_any(at, p);
        break;
      case ELMAN:
        elman_ahead(at, p->activation);
        break;
      case GRU:
        product(rows, P / V, H, h, H, run->r_n, run->bias + 3 * P, 0, a + 3 * P, s.a_row);
        gru_ahead(at);
        break;
      default:
        gru_2014_gates(at);
        product(rows, P / V, H, q, s.h_row, run->r_n, a + 2 * P, s.a_row, a + 2 * P, s.a_row);
        gru_2014_candidate(at);
      }
    }
    const real *states[2] = {p->h, p->c};
    real *last[2] = {p->h_n, p->c_n};
    for (int k = 0; k < 2; k++)
      if (last[k] && p->steps)
        memcpy(
            last[k] + first * H, states[k] + (time_of(p, p->steps - 1) * B + first) * H,
            (size_t)(rows * H) * sizeof(real));
      else if (last[k])
        memcpy(
            last[k] + first * H, run->initial[k] + first * H, (size_t)(rows * H) * sizeof(real));
  }
}

/* Padded biases of the blocks of a step: those of both weight matrices where they only add up. */
static void pad_biases(const struct pass *p, const struct sizes *s, real *bias) {
  pad(bias, p->bias_ih, s->G, p->hidden, s->padded);
  if (s->blocks > s->G)
    pad(bias + s->G * s->padded, 0, s->blocks - s->G, p->hidden, s->padded);
  const real *more = p->bias_hh;
  for (int64_t block = 0; more && block < s->G; block++) {
    int64_t to = p->cell == GRU && block == 2 ? 3 : block;
    for (int64_t k = 0; k < p->hidden; k++)
      bias[to * s->padded + k] += more[block * p->hidden + k];
  }
}

static int64_t forward(const struct pass *p) {
  struct sizes s = sizes_of(p);
  const int64_t H = p->hidden, I = p->inputs, P = s.padded, B = p->samples;
  int64_t rows = (B + s.parts - 1) / s.parts;
  s.of_part = padded_to(rows * s.a_row, 64) + padded_to(rows * s.h_row, 64) +
              padded_to(rows * (s.K ? s.K : 1) * P, 64) + padded_to(rows * s.gates_row, 64);
  int64_t shared = padded_to(s.G * P * I, 64) + padded_to(s.G * P * H, 64) + 64 +
                   padded_to(s.blocks * P, 64) + padded_to(4 * P, 64) +
                   padded_to(3 * P * s.gates, 64) + padded_to(B * (s.gates ? s.gates : H), 64);
  void *raw;
  real *free_ = memory(shared + s.parts * s.of_part, &raw);
  if (!free_)
    return 1;
  struct run run = {.pass = p, .sizes = s};
  run.w = taken(&free_, s.G * P * I);
  run.r = taken(&free_, s.G * P * H);
  run.bias = taken(&free_, s.blocks * P);
  run.peepholes = taken(&free_, 4 * P);
  run.gg = taken(&free_, 3 * P * s.gates);
  struct grouped wide = {s.G, H, P}, x = {1, I, I}, h = {1, H, H};
  pack(run.w, p->weight_ih, 1, I, x, wide);
  if (is_gru(p)) {
    struct grouped two = {2, H, P}, one = {1, H, P};
    run.r_n = run.r + 2 * P * H;
    pack(run.r, p->weight_hh, 1, H, h, two);
    pack(run.r_n, (const real *)p->weight_hh + 2 * H * H, 1, H, h, one);
  } else
    pack(run.r, p->weight_hh, 1, H, h, wide);
  if (s.gates) {
    struct grouped all = {1, s.gates, s.gates}, two = {2, H, P}, one = {1, H, P};
    run.gg_o = run.gg + 2 * P * s.gates;
    pack(run.gg, p->weight_gg, 1, s.gates, all, two);
    pack(run.gg_o, (const real *)p->weight_gg + 2 * H * s.gates, 1, s.gates, all, one);
  }
  pad_biases(p, &s, run.bias);
  pad(run.peepholes, p->weight_ch, peephole_count(p), H, P);

  find_initial(p, &run, &free_);
  run.scratch = free_;
  if (B)
    in_parts(p, s.parts, forward_parts, &run);
  free(raw);
  return 0;
}
