/* Which steps the backward pass can pass over: no gradient comes to them, and so they give none. */

/* Whether all numbers of some rows are 0; a NaN is not. */
static int all_zero(const real *from, int64_t rows, int64_t row, int64_t size) {
  for (int64_t r = 0; r < rows; r++, from += row) {
    int_vec found = {0};
    for (int64_t j = 0; j < size; j += V)
      found |= (int_vec)(load_some(from + j, size - j) != (vec){0});
    for (int64_t k = 0; k < V; k++)
      if (found[k])
        return 0;
  }
  return 1;
}

/* Whether all numbers of some rows are finite, so that 0 times each of them is 0. */
static int all_finite(const real *from, int64_t rows, int64_t row, int64_t size) {
  vec sums[4] = {{0}, {0}, {0}, {0}};
  for (int64_t r = 0; r < rows; r++, from += row) {
    int64_t j = 0;
    for (; j + 4 * V <= size; j += 4 * V)
      UNROLL for (int n = 0; n < 4; n++) sums[n] += load(from + j + n * V) * 0;
    for (; j < size; j += V)
      sums[0] += load_some(from + j, size - j) * 0;
  }
  vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int64_t k = 0; k < V; k++)
    if (sum[k] != 0)
      return 0;
  return 1;
}

static int finite_weights(const struct pass *p, const struct sizes *s) {
  int64_t H = p->hidden, rows = s->G * H;
  return all_finite(p->weight_ih, rows, p->inputs, p->inputs) &&
         all_finite(p->weight_hh, rows, H, H) &&
         all_finite(p->weight_gg, s->gates, s->gates, s->gates) &&
         (!p->weight_ch || all_finite(p->weight_ch, peephole_count(p), H, H));
}

/* Whether no gradient comes to a step, neither from the loss nor from the steps after it. */
static int nothing_comes(const struct back *at, int64_t kept) {
  int64_t B = at->rows, H = at->hidden;
  return all_zero(at->carried_h, B, at->carried_row, H) &&
         all_zero(at->carried_c, B, at->carried_row, H) &&
         (!at->by_h || all_zero(at->by_h, B, at->by_h_row, H)) &&
         (!at->by_c || all_zero(at->by_c, B, at->by_c_row, H)) &&
         (!at->by_kept || all_zero(at->by_kept, B, at->kept_row, kept));
}

/* Whether what a step gives to its gradients is 0 then, as 0 times infinity is not. What an LSTM
   keeps is finite where its states are; `after` is whether those after the step are known to be. */
static int nothing_given(const struct back *at, const struct pass *p, int64_t kept, int after) {
  int64_t B = at->rows, H = at->hidden;
  return all_finite(at->h_before, B, H, H) && all_finite(at->c_before, B, H, H) &&
         (after || (all_finite(at->h, B, H, H) && all_finite(at->c, B, H, H))) &&
         (p->cell == LSTM || all_finite(at->kept, B, at->kept_row, kept));
}
