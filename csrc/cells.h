/* What each cell does between the matrix products of a step: some samples, forward and backward.

   `a` holds the blocks of pre-activations, each padded to whole vectors, and `d` their gradients.
   Equations are those of the classes in src/retrograde/cells (LSTM, GRU, GRU2014, Elman). */

/* Where the first sample of a step is, forward, and how far apart the samples are. */
struct ahead {
  const real *a, *peepholes, *h_before, *c_before;
  real *h, *c, *kept, *q;
  int64_t rows, hidden, padded, a_row, kept_row, q_row;
};

/* And backward. `by_h` and `by_c` are what the loss gives directly, NULL for nothing; `carried_h`
   and `carried_c` what came back from the step after, replaced by what goes to the one before. */
struct back {
  const real *peepholes, *h_before, *h, *c_before, *c, *kept, *by_h, *by_c, *by_kept;
  real *carried_h, *carried_c, *d, *by_q, *by_peepholes;
  int64_t rows, hidden, padded, d_row, kept_row, by_h_row, by_c_row, carried_row;
  int64_t truncated; /* nothing comes back through recurrent weights */
  real limit;        /* what gradients of pre-activations are brought into */
  int64_t *clipped;  /* counts those that were larger; NULL where none is clipped */
};

INLINE void next_ahead(struct ahead *s) {
  s->a += s->a_row;
  s->h_before += s->hidden;
  s->c_before += s->hidden;
  s->h += s->hidden;
  s->c += s->hidden;
  s->kept += s->kept_row;
  s->q += s->q_row;
}

INLINE void next_back(struct back *s) {
  s->h_before += s->hidden;
  s->h += s->hidden;
  s->c_before += s->hidden;
  s->c += s->hidden;
  s->kept += s->kept_row;
  s->by_h += s->by_h ? s->by_h_row : 0;
  s->by_c += s->by_c ? s->by_c_row : 0;
  s->by_kept += s->by_kept ? s->kept_row : 0;
  s->carried_h += s->carried_row;
  s->carried_c += s->carried_row;
  s->d += s->d_row;
  s->by_q += s->carried_row;
}

/* Vectors of units of all samples: j is the first unit, n how many of them there are. */
#define EACH(next, s, j, n)                                                                        \
  const int64_t H = s.hidden, padded __attribute__((unused)) = s.padded;                           \
  for (int64_t row = 0; row < s.rows; row++, next(&s))                                             \
    for (int64_t j = 0, n = H < V ? H : V; j < H; j += V, n = H - j < V ? H - j : V)

INLINE void lstm_ahead(
    struct ahead s, int64_t gates, int64_t activation,
    int64_t state_activation, int peephole) {
  int f_at = !!(gates & INPUT), g_at = f_at + !!(gates & FORGET), o_at = g_at + 1;
  int p_o = f_at + !!(gates & FORGET), y_at = o_at + !!(gates & OUTPUT);
  EACH(next_ahead, s, j, n) {
    vec c_before = load_some(s.c_before + j, n), i = all(1), f = all(1), o = all(1);
    if (gates & INPUT) {
      vec a = load(s.a + j);
      if (peephole)
        a += load(s.peepholes + j) * c_before;
      i = sigmoid(a);
      store(s.kept + j, i);
    }
    if (gates & FORGET) {
      vec a = load(s.a + f_at * padded + j);
      if (peephole)
        a += load(s.peepholes + f_at * padded + j) * c_before;
      f = sigmoid(a);
      store(s.kept + f_at * padded + j, f);
    } else if (gates & COUPLED)
      f = 1 - i;
    vec g = activated(activation, load(s.a + g_at * padded + j));
    store(s.kept + g_at * padded + j, g);
    vec c = i * g + f * c_before;
    if (gates & OUTPUT) {
      vec a = load(s.a + o_at * padded + j);
      if (peephole)
        a += load(s.peepholes + p_o * padded + j) * c;
      o = sigmoid(a);
      store(s.kept + o_at * padded + j, o);
    }
    vec y = activated(state_activation, c);
    store(s.kept + y_at * padded + j, y);
    store_some(s.c + j, c, n);
    store_some(s.h + j, o * y, n);
  }
}

/* The gradient of n units times limit / |gradient| where that is larger; one that is infinite
   becomes NaN. */
static vec held(const struct back *s, vec d, int64_t n) {
  vec size = choose((int_vec)(d < 0), -d, d);
  vec brought = choose((int_vec)(size > s->limit), d * (s->limit / size), d);
  /* Compared once more, number by number: gcc 12 cannot compile a mask for vectors of doubles
     without SSE4 that reaches its use by more than one way. */
  for (int64_t k = 0; k < n; k++)
    *s->clipped += size[k] > s->limit;
  return brought;
}
#define HELD(value)                                                                                \
  do {                                                                                             \
    if (s.clipped)                                                                                 \
      value = held(&s, value, n);                                                                  \
  } while (0)

INLINE void lstm_back(
    struct back s, int64_t gates, int64_t activation,
    int64_t state_activation, int peephole) {
  int f_at = !!(gates & INPUT), g_at = f_at + !!(gates & FORGET), o_at = g_at + 1;
  int p_o = f_at + !!(gates & FORGET), y_at = o_at + !!(gates & OUTPUT);
/* Padding of what goes into products is 0, also where an infinite input made it NaN. */
#define KEPT(at) load(s.kept + (at) * padded + j)
#define DIRECT(at) (s.by_kept ? load(s.by_kept + (at) * padded + j) : (vec){0})
#define GIVE(at, value)                                                                            \
  do {                                                                                             \
    store(s.d + (at) * padded + j, first(value, n));                                               \
  } while (0)
#define PEEPHOLE(at, d, seen)                                                                      \
  do {                                                                                             \
    real *sum = s.by_peepholes + (at) * padded + j;                                                \
    store(sum, load(sum) + (d) * (seen));                                                          \
  } while (0)
  EACH(next_back, s, j, n) {
    vec i = gates & INPUT ? KEPT(0) : all(1), g = KEPT(g_at), y = KEPT(y_at);
    vec f = gates & FORGET ? KEPT(f_at) : gates & COUPLED ? 1 - i : all(1);
    vec o = gates & OUTPUT ? KEPT(o_at) : all(1);
    vec c_before = load_some(s.c_before + j, n);
    vec by_h = load(s.carried_h + j), by_c = load(s.carried_c + j);
    if (s.by_h)
      by_h += load_some(s.by_h + j, n);
    if (s.by_c)
      by_c += load_some(s.by_c + j, n);
    by_c += (by_h * o + DIRECT(y_at)) * slope(state_activation, y);
    if (gates & OUTPUT) {
      vec by_o = (by_h * y + DIRECT(o_at)) * slope(SIGMOID, o);
      HELD(by_o);
      GIVE(o_at, by_o);
      if (peephole) {
        by_c += load(s.peepholes + p_o * padded + j) * by_o;
        PEEPHOLE(p_o, by_o, load_some(s.c + j, n));
      }
    }
    vec by_g = (by_c * i + DIRECT(g_at)) * slope(activation, g);
    HELD(by_g);
    GIVE(g_at, by_g);
    vec back = by_c * f;
    if (gates & INPUT) {
      vec by_i = (by_c * (gates & COUPLED ? g - c_before : g) + DIRECT(0)) * slope(SIGMOID, i);
      HELD(by_i);
      GIVE(0, by_i);
      if (peephole) {
        back += load(s.peepholes + j) * by_i;
        PEEPHOLE(0, by_i, c_before);
      }
    }
    if (gates & FORGET) {
      vec by_f = (by_c * c_before + DIRECT(f_at)) * slope(SIGMOID, f);
      HELD(by_f);
      GIVE(f_at, by_f);
      if (peephole) {
        back += load(s.peepholes + f_at * padded + j) * by_f;
        PEEPHOLE(f_at, by_f, c_before);
      }
    }
    store(s.carried_c + j, back);
  }
}

INLINE void elman_ahead(struct ahead s, int64_t activation) {
  EACH(next_ahead, s, j, n) store_some(s.h + j, activated(activation, load(s.a + j)), n);
}

INLINE void elman_back(struct back s, int64_t activation) {
  EACH(next_back, s, j, n) {
    vec by_h = load(s.carried_h + j);
    if (s.by_h)
      by_h += load_some(s.by_h + j, n);
    vec d = by_h * slope(activation, load_some(s.h + j, n));
    HELD(d);
    store(s.d + j, d);
  }
}

/* Blocks r, z, n and, as torch has it, q = R_n h + b_hn. */
INLINE void gru_ahead(struct ahead s) {
  EACH(next_ahead, s, j, n) {
    vec r = sigmoid(load(s.a + j)), z = sigmoid(load(s.a + padded + j));
    vec q = load(s.a + 3 * padded + j), h_before = load_some(s.h_before + j, n);
    vec new = hyperbolic_tangent(load(s.a + 2 * padded + j) + r * q);
    store(s.kept + j, r);
    store(s.kept + padded + j, z);
    store(s.kept + 2 * padded + j, new);
    store(s.kept + 3 * padded + j, q);
    store_some(s.h + j, (1 - z) * new + z * h_before, n);
  }
}

INLINE void gru_back(struct back s) {
  EACH(next_back, s, j, n) {
    vec r = KEPT(0), z = KEPT(1), new = KEPT(2), q = KEPT(3);
    vec by_h = load(s.carried_h + j);
    if (s.by_h)
      by_h += load_some(s.by_h + j, n);
    vec by_n = (by_h * (1 - z) + DIRECT(2)) * slope(TANH, new);
    HELD(by_n);
    vec by_r = (by_n * q + DIRECT(0)) * slope(SIGMOID, r);
    HELD(by_r);
    vec by_z = (by_h * (load_some(s.h_before + j, n) - new) + DIRECT(1)) * slope(SIGMOID, z);
    HELD(by_z);
    GIVE(0, by_r);
    GIVE(1, by_z);
    GIVE(2, by_n);
    GIVE(3, by_n * r + DIRECT(3));
    store(s.carried_h + j, by_h * z);
  }
}

/* Cho et al. (2014): q = r h is what R_n multiplies. First the gates, then the candidate. */
INLINE void gru_2014_gates(struct ahead s) {
  EACH(next_ahead, s, j, n) {
    vec r = sigmoid(load(s.a + j)), z = sigmoid(load(s.a + padded + j));
    vec q = r * load_some(s.h_before + j, n);
    store(s.kept + j, r);
    store(s.kept + padded + j, z);
    store(s.kept + 3 * padded + j, q);
    store(s.q + j, q);
  }
}

INLINE void gru_2014_candidate(struct ahead s) {
  EACH(next_ahead, s, j, n) {
    vec z = load(s.kept + padded + j), new = hyperbolic_tangent(load(s.a + 2 * padded + j));
    store(s.kept + 2 * padded + j, new);
    store_some(s.h + j, (1 - z) * new + z * load_some(s.h_before + j, n), n);
  }
}

INLINE void gru_2014_candidate_back(struct back s) {
  EACH(next_back, s, j, n) {
    vec z = KEPT(1), new = KEPT(2), by_h = load(s.carried_h + j);
    if (s.by_h)
      by_h += load_some(s.by_h + j, n);
    vec by_z = (by_h * (load_some(s.h_before + j, n) - new) + DIRECT(1)) * slope(SIGMOID, z);
    HELD(by_z);
    vec by_n = (by_h * (1 - z) + DIRECT(2)) * slope(TANH, new);
    HELD(by_n);
    GIVE(1, by_z);
    GIVE(2, by_n);
    store(s.carried_h + j, by_h * z);
  }
}

INLINE void gru_2014_reset_back(struct back s) {
  EACH(next_back, s, j, n) {
    vec r = KEPT(0), h_before = load_some(s.h_before + j, n);
    vec by_q = load(s.by_q + j) + DIRECT(3);
    vec by_r = (by_q * h_before + DIRECT(0)) * slope(SIGMOID, r);
    HELD(by_r);
    GIVE(0, by_r);
    if (!s.truncated)
      store(s.carried_h + j, load(s.carried_h + j) + by_q * r);
  }
}

#undef KEPT
#undef DIRECT
#undef GIVE
#undef HELD
#undef PEEPHOLE

/* The frequent generations with what they have known to the compiler, and any other. */
#define LSTM_ANY(direction)                                                                        \
  static void lstm_##direction##_any(struct direction at, const struct pass *p) {                  \
    const int64_t gates = p->gates, g = p->activation, y = p->state_activation;                    \
    const int64_t every = INPUT | FORGET | CELL | OUTPUT, coupled = every - FORGET + COUPLED;      \
    const int peephole = p->weight_ch != 0;                                                        \
    if (g == TANH && y == TANH && gates == every && !peephole)                                     \
      lstm_##direction(at, every, TANH, TANH, 0);                                                  \
    else if (g == TANH && y == TANH && gates == every)                                             \
      lstm_##direction(at, every, TANH, TANH, 1);                                                  \
    else if (g == TANH && y == TANH && gates == coupled && peephole)                               \
      lstm_##direction(at, coupled, TANH, TANH, 1);                                                \
    else if (g == WIDE_SIGMOID && y == CENTRED_SIGMOID && gates == every - FORGET)                 \
      lstm_##direction(at, every - FORGET, WIDE_SIGMOID, CENTRED_SIGMOID, 0);                      \
    else                                                                                           \
      lstm_##direction(at, gates, g, y, peephole);                                                 \
  }

LSTM_ANY(ahead)
LSTM_ANY(back)
