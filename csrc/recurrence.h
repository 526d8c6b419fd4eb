/* What Python hands over for one pass of one layer, and the names of what it can be.

   Every field is 8 bytes, so that Python fills an array of 64-bit integers (compiled/library.py
   lists the same fields in the same order). Pointers are to contiguous arrays of the type of the
   weights unless strides are named; a pointer that is NULL stands for something absent. */

#ifndef RETROGRADE_RECURRENCE_H
#define RETROGRADE_RECURRENCE_H

#include <stdint.h>

enum cell { LSTM, ELMAN, GRU, GRU_2014 };
enum gate { INPUT = 1, FORGET = 2, CELL = 4, OUTPUT = 8, COUPLED = 16 };
enum activation { TANH, RELU, SIGMOID, IDENTITY, WIDE_SIGMOID, CENTRED_SIGMOID,
                  SOFTPLUS, RELU_SIGMOID };

typedef void (*range_function)(int64_t begin, int64_t end, void *context);
typedef int32_t (*parallel_function)(
    int64_t begin, int64_t end, int64_t grain, range_function function, void *context);

struct pass {
  /* The cell. */
  int64_t cell, gates, activation, state_activation;
  /* Sizes: steps, samples, inputs, hidden units; how many parts the samples are split into. */
  int64_t steps, samples, inputs, hidden, parts, reverse;
  /* torch_parallel_for; NULL runs one part after the other. */
  parallel_function parallel;
  /* Inputs [T, B, I] with these strides, in elements. */
  const void *x;
  int64_t x_step, x_sample;
  /* weight_ih [G*H, I], weight_hh [G*H, H], bias_ih and bias_hh [G*H], weight_ch [P*H], and
     weight_gg [3H, 3H] of an LSTM with all gates, where i, f and o see those of the step before. */
  const void *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_ch, *weight_gg;
  /* The initial state, [B, H] each, and of gates that are seen [B, 3H]; NULL is zeros. */
  const void *h_0, *c_0, *gates_0;
  /* States after each step, [T, B, H], and after the last one, [B, H]. The backward pass reads no h
     of an LSTM, which follows from what is kept. */
  void *h, *c, *h_n, *c_n;
  /* Activations [T, B, K, H padded to whole vectors]; NULL where they are not kept, as gates that
     are seen must be. */
  void *kept;

  /* Backward: gradients of h and c [T, B, H] with these strides, and of the activations. */
  const void *by_h, *by_c, *by_kept;
  int64_t by_h_step, by_h_sample, by_c_step, by_c_sample;
  /* Gradients of the last state, [B, H]. */
  const void *by_h_n, *by_c_n;
  /* Results: [T, B, I] contiguous, the shapes of the weights, and of the initial state. */
  void *by_x, *by_weight_ih, *by_weight_hh, *by_bias_ih, *by_bias_hh, *by_weight_ch, *by_weight_gg;
  void *by_h_0, *by_c_0, *by_gates_0;
  /* What the backward pass does otherwise than the derivative. `truncated`: nothing comes back
     through the recurrent weights. `limit`: the address of the largest size that the gradient of a
     pre-activation may have, NULL for any; `clipped`: for each part how many were larger. */
  int64_t truncated;
  const void *limit;
  int64_t *clipped;
};

/* One network of blocks, and the sequences that it learns on line, one after the other. */
struct lesson {
  /* Weights, changed: [U, D] of the hidden units, cells first and then gate by gate, from inputs,
     what is fed back, the bias, and with peepholes from the state of the cell; [O, C + I + 1] of
     the outputs, from cells, inputs, bias. */
  void *hidden, *output;
  /* What momentum has gathered of their negative gradients, changed; NULL without momentum. */
  void *by_hidden, *by_output;
  /* c, what is fed back and the derivatives of c by the weights of its units, [C + F + P * C * D],
     changed; NULL begins each sequence with zeros. */
  void *state;
  /* The learning rate, its factor from step to step, and momentum's from answer to answer. */
  double rate, decay, momentum;
  /* N sequences of up to T steps: inputs [T, N, I] contiguous, or NULL and the numbers [T, N] of
     the inputs that are 1; targets [T, N, O], whether an answer is due [T, N], lengths [N]. */
  int64_t sequences;
  const void *x;
  const int64_t *symbols;
  const void *y;
  const uint8_t *due;
  const int64_t *lengths;
  /* The outputs that may be active [T, N, O]: a sequence ends with the first step at which one of
     them is not more active than all others. NULL for nothing of the kind. */
  const uint8_t *possible;
  /* A sequence ends with the first answer that errs by as much; 0 for nothing of the kind. */
  double limit;
  /* The steps before which the state is set to zero [T, N], or NULL. */
  const uint8_t *begins;
  /* Results: answers [T, N, O] where they are due, and the steps before such an end [N]. */
  void *answers;
  int64_t *before;
};

/* Networks of one plan (tasks/blocks.py), and what each of them learns. */
struct online {
  /* C = blocks * size cells; gates of `enum gate`, of which INPUT is always there. */
  int64_t blocks, size, gates, inputs, outputs, fed_back, skip, biased;
  int64_t cell_input, cell_output, output; /* of `enum activation` */
  int64_t each_step;               /* weights change at each answer, not after each sequence */
  int64_t peepholes;               /* gates see the state of their cell; size is 1 */
  int64_t networks, parts;
  parallel_function parallel;
  const struct lesson *lessons;
};
enum biased { BIASED_CELLS = 1, BIASED_GATES = 2, BIASED_OUTPUTS = 4 };

/* What a backward recursion of many rows runs through: the step of a cell, folded (compiled/scan.py
   writes the same in the same order). Matrices and factors hold neighbouring steps of a chunk. */

#define SCAN_NODES 64
#define SCAN_PRODUCTS 64

/* A factor of every step, sample and block, neighbouring units next to each other; NULL is 1. */
struct factor {
  const void *at;
  int64_t step, sample, block;
};

/* Entries of a register, from `start` on, times a factor. Register 0 holds the adjoints of the
   state after the step, the others those of the nodes without a slot, in order. */
struct term {
  int64_t source, start;
  struct factor factor;
};

/* Neighbouring blocks of a product, whose adjoints are multiples of the same entries. */
struct segment {
  int64_t source, start, first, blocks;
  struct factor factor;
};

/* Adjoints of some blocks side by side times a matrix [blocks * height, width]. */
struct product {
  const void *matrix;
  int64_t by_row, by_column, blocks, height, width, segments;
};

/* (products + terms) * scale: a part of the state before, from `slot` on, or a register (-1). */
struct node {
  int64_t slot, width, products, terms;
  struct factor scale;
};

/* Nodes in the order in which they are computed; those with a slot in the order of the state. What
   the others need of these arrays follows one another in the same order. */
struct program {
  int64_t nodes, products;
  const struct node *all_nodes;
  const struct product *all_products;
  const struct segment *all_segments;
  const struct term *all_terms;
};

/* Neighbouring steps, and the rows that go through them. */
struct scan {
  /* Steps, samples, the size of the state; rows that have a start; the first step in the chunk. */
  int64_t steps, samples, size, started, first;
  /* How many threads there are, and torch_parallel_for; NULL runs one task after the other. */
  int64_t parts;
  parallel_function parallel;
  /* Rows at each step, [K]; from the last step to the first they never become fewer. */
  const int64_t *rows;
  /* Rows at the last step, [started, B, S], each of which is multiplied by a number first, NULL for
     1; what the loss gives at each step, [K, B, S] or NULL. */
  const void *start, *scales, *given;
  /* Addresses of factors [B, S] between each step and the one before, NULL for none. */
  const int64_t *boundaries;
  /* Results: rows [N, K, B, S] and what comes back [N, B, S] or NULL, where N is rows[0]; their
     norms, [N, K] and [N]. */
  void *values, *norms, *back, *back_norms;
  /* NULL, or a further result, [N, K]: rows that leave the range are multiplied by powers of two on
     the way, but for the newest one as long as the loss adds to it, and 2^exponent is what a row at a
     step is in units of, beside those that it came in. All samples are one task then. */
  int64_t *exponents;
  /* Sums of rows instead of rows, where `sums` is not 0: the number of the sum that each row belongs
     to at each step, -1 for none, [N, K], and what a row is in units of, [N]. `values` are then the
     sums [sums, K, B, S], and `exponents` what these are in units of, NO_EXPONENT for nothing,
     [sums, K]. Rows are kept in range sample by sample; what comes back is in units of
     2^back_exponents, [N], beside those of each row. No norms but those of what comes back are
     found, and all that the loss gives must be rows of their own. */
  int64_t sums;
  const int64_t *places, *units;
  int64_t *back_exponents;
  struct program program;
};

/* The same with rows for each class of an entry, one after the other; the program gives twice as
   wide rows, what comes back without crossing recurrent weights and what comes back by them. */
struct crossings {
  /* Steps, samples, the size of the state; classes of an entry; the first step in the chunk. */
  int64_t steps, samples, size, classes, first;
  int64_t parts;
  parallel_function parallel;
  /* Entries at each step, [K], and how many there are at most. From the last step to the first they
     become fewer at turns alone. */
  const int64_t *entries;
  int64_t most;
  /* Turns, at which neighbouring entries become one before any enters: which there is at each step,
     -1 for none, [K]; how many there are after each. Then the rows of an entry are sums of those of
     number sources[e] up to sources[e + 1], times weights, of each turn [A + 1] and [A * classes],
     where A is `arriving`. The first is at the last step: of the rows that arrive, [., B, S]. More
     than this one only where there are bins. */
  const int64_t *turns, *started;
  int64_t arriving;
  const int64_t *sources;
  const void *start, *weights;
  /* What the loss gives at each step, [K, B, S] or NULL: an entry of its own, or part of the newest. */
  const void *given;
  const int64_t *boundaries; /* as in struct scan */
  /* What crosses from each class to the next is multiplied by from each turn on, [most, classes - 1]. */
  const void *moves;
  /* Results, NULL for one that is not asked for: rows [N, K, B, S] and the sizes of their largest
     entries [N, K], where N is most * classes; what comes back [M, B, S] and the sizes of it [M],
     where M is entries[0] * classes. */
  void *values, *sizes, *back, *back_sizes;
  /* Further results, where `bins` is the number of bins: for each class and bin the sum of the rows
     of all entries in it, [classes * bins, K, B, S], with so many numbers from one to the next, and
     its exponent, NO_EXPONENT for nothing. The bin of each entry at each step, [most, K], neighbours
     next to each other; the exponents of rows from each turn on, [N]. */
  int64_t bins, of_sum;
  const int64_t *places, *units;
  void *sums;
  int64_t *sum_units;
  struct program program;
};

/* What comes back from neighbouring steps by each route; the program gives as many times as wide
   rows, what comes back by each of them one behind the other. */
struct routes {
  /* Steps, samples, the size of the state, rows, the first step in the chunk; bins, routes. */
  int64_t steps, samples, size, rows, first, bins, ways;
  int64_t parts;
  parallel_function parallel;
  /* Rows [N, K, B, S] with these strides in elements, those of a step next to each other; the bin
     that each belongs to at the step before, neighbours next to each other, and its exponent,
     NO_EXPONENT for a row of zeros, [N, K]. */
  const void *values;
  int64_t row, step;
  const int64_t *places, *exponents;
  const int64_t *boundaries; /* as in struct scan */
  /* Results: sums [ways * bins, K, B, S] of what comes back from each step but the first, at the
     place of the step before it; from the first one, [ways * bins, B, S]; the exponents of what comes
     back from each step, [ways * bins, K]. Sums without rows, of exponent NO_EXPONENT, are not
     written. */
  void *sums, *last;
  int64_t *units;
  struct program program;
};

/* Adjoints of some blocks side by side, [B, blocks * height], and how many operands they have. */
struct group {
  int64_t height, blocks, segments, operands;
};

/* What adjoints are multiplied by at each step of a chunk, [K, B, width] with these strides, in
   elements; NULL is 1. */
struct operand {
  const void *at;
  int64_t step, sample, width;
};

/* A matrix in memory, neighbouring rows and columns so many elements apart. */
struct matrix {
  const void *at;
  int64_t by_row, by_column;
};

/* How large what rows make of parameters is, || sum_b da_b (x) u_b || for each operand u, and its
   product <sum_b da_b (x) u_b, G> with a gradient G. */
struct sizes_of_rows {
  /* Steps, samples, the size of the state, rows, the first step in the chunk. */
  int64_t steps, samples, size, rows, first;
  int64_t parts;
  parallel_function parallel;
  /* Rows [N, K, B, S] with these strides in elements, those of a step next to each other. */
  const void *values;
  int64_t row, step;
  /* The lag of each row at each step, negative where it has not entered yet and is zeros, [N, K];
     NULL where all have. */
  const int64_t *lags;
  /* G of each operand, [P, width] or [P]; NULL where no products are asked for. */
  const struct matrix *gradients;
  /* Results, [U, N, K], zeros before: the squares, and whether they cancel too far to be trusted,
     NULL where no sizes are asked for; the products. */
  double *squares;
  uint8_t *cancels;
  double *inner;
  int64_t groups;
  const struct group *all_groups;
  const struct segment *of_groups;
  const struct operand *all_operands;
  struct program program; /* the nodes that the groups need, none with a slot */
};

/* What rows make of parameters, summed over steps and samples, rows that share a number together:
   sum_k sum_b da_kb (x) u_kb for each operand u. */
struct sums_of_rows {
  /* Steps, samples, the size of the state, rows, the first step in the chunk; how many sums, and
     the numbers of each. */
  int64_t steps, samples, size, rows, first, sums, of_sum;
  int64_t parts;
  parallel_function parallel;
  /* Rows [N, K, B, S] with these strides in elements, those of a step next to each other. */
  const void *values;
  int64_t row, step;
  /* The sum that each row belongs to at each step, -1 for none, and its exponent, [N, K]. */
  const int64_t *places, *exponents;
  /* Changed: what was added lately, [sums, of_sum], and what was put aside before as it is on quite
     another scale, NULL before there is any. A sum holds, group by group, [P, operands side by
     side, each padded to whole vectors] but for those of half a vector at most, [width, P padded]
     for each of these, and [P] padded where there is an operand of 1. */
  void *recent;
  double *aside;
  /* Changed: of each sum the exponent of what is recent, the least that is in it, and the exponent
     of what was put aside; NO_EXPONENT for nothing, [3, sums]. */
  int64_t *units;
  int64_t groups;
  const struct group *all_groups;
  const struct segment *of_groups;
  const struct operand *all_operands;
  struct program program; /* the nodes that the groups need, none with a slot */
};
#define NO_EXPONENT (-((int64_t)1 << 40))

/* 0, or 1 where there was not enough memory; of sums 2, and nothing done, where something has to be
   put aside and there is nowhere to put it; of a scan that sums rows 2 where a row is not finite. */
typedef int64_t (*pass_function)(const struct pass *pass);
typedef int64_t (*scan_function)(const struct scan *scan);
typedef int64_t (*crossings_function)(const struct crossings *crossings);
typedef int64_t (*routes_function)(const struct routes *routes);
typedef int64_t (*sizes_function)(const struct sizes_of_rows *sizes);
typedef int64_t (*sums_function)(const struct sums_of_rows *sums);
typedef int64_t (*online_function)(const struct online *online);

struct kernels {
  int64_t bytes; /* of a vector, to which rows of activations are padded */
  pass_function forward, backward;
  scan_function scan;
  crossings_function crossings;
  routes_function routes;
  sizes_function sizes;
  sums_function sums;
  online_function learn;
};

#endif
