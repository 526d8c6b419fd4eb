/* What Python hands over for one pass of one layer, and the names of what it can be.

   Every field is 8 bytes, so that Python fills an array of 64-bit integers (compiled/library.py
   lists the same fields in the same order). Pointers are to contiguous arrays of the type of the
   weights unless strides are named; a pointer that is NULL stands for something absent. */

#ifndef RETROGRADE_RECURRENCE_H
#define RETROGRADE_RECURRENCE_H

#include <stdint.h>

#define RETROGRADE_INTERFACE 1

enum cell { LSTM, ELMAN, GRU, GRU_2014 };
enum gate { INPUT = 1, FORGET = 2, CELL = 4, OUTPUT = 8, COUPLED = 16 };
enum activation { TANH, RELU, SIGMOID, IDENTITY, WIDE_SIGMOID, CENTRED_SIGMOID };

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
  /* weight_ih [G*H, I], weight_hh [G*H, H], bias_ih and bias_hh [G*H], weight_ch [P*H]. */
  const void *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_ch;
  /* The initial state, [B, H] each; NULL is zeros. */
  const void *h_0, *c_0;
  /* States after each step, [T, B, H], and after the last one, [B, H]. */
  void *h, *c, *h_n, *c_n;
  /* Activations [T, B, K, H padded to whole vectors]; NULL where they are not kept. */
  void *kept;

  /* Backward: gradients of h and c [T, B, H] with these strides, and of the activations. */
  const void *by_h, *by_c, *by_kept;
  int64_t by_h_step, by_h_sample, by_c_step, by_c_sample;
  /* Gradients of the last state, [B, H]. */
  const void *by_h_n, *by_c_n;
  /* Results: [T, B, I] contiguous, the shapes of the weights, and [B, H]. */
  void *by_x, *by_weight_ih, *by_weight_hh, *by_bias_ih, *by_bias_hh, *by_weight_ch;
  void *by_h_0, *by_c_0;
};

/* 0, or 1 where there was not enough memory. */
typedef int64_t (*pass_function)(const struct pass *pass);

struct kernels {
  int64_t bytes; /* of a vector, to which rows of activations are padded */
  pass_function forward, backward;
};

#endif
