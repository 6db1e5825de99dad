/* What the real library does not have: how a test steers the pretended hardware. No nvmlInit is needed. */
#include "fakenvml.h"

#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))

/* How long a batch takes, as the roofline of a model that is partly bound by memory. Invented. */
#define COMPUTE_S 0.004
#define MEMORY_S 0.002
#define LAUNCH_S 0.0005

static double service_s(const struct gpu *g) {
  const struct kind *k = &KINDS[g->kind];
  double compute = (double)k->top_mhz / clock_at(g, 1), memory = (double)k->memory_mhz[0] / memory_clock(g);
  return LAUNCH_S + COMPUTE_S * compute + MEMORY_S * memory;
}

/* Makes the state file where there is none. 0, or -1 if it cannot be made or FAKE_NVML_GPUS names no GPU. */
API int fakenvml_open(void) {
  if (!open_state()) return -1;
  leave();
  return 0;
}

/* Sets one thing about a GPU; the names are the branches below. 0, or -1 for a name or GPU that is not. */
API int fakenvml_set(unsigned i, const char *name, double value) {
  struct state *s = open_state();
  if (!s) return -1;
  int result = 0;
  if (!strcmp(name, "permission")) s->permission = (int)value;
  else if (i >= s->n_gpus) result = -1;
  else {
    struct gpu *g = &s->gpus[i];
    unsigned whole = value < 0 ? 0 : (unsigned)value, before = clock_at(g, g->load);
    advance(s, g);
    if (!strcmp(name, "load")) {
      if (g->load > 0 && value <= 0) g->unloaded_s = g->now_s;
      g->load = value;
    }
    else if (!strcmp(name, "heat")) g->heat = whole;
    else if (!strcmp(name, "lost")) g->lost = whole;
    else if (!strcmp(name, "mig")) g->mig = g->mig_pending = whole;
    else if (!strcmp(name, "mig_pending")) g->mig_pending = whole;
    else if (!strcmp(name, "ignores_locks")) g->ignores_locks = whole;
    else if (!strcmp(name, "counter_gain")) g->counter_gain = value;
    else if (!strcmp(name, "energy_period_us")) g->energy_period_us = whole;
    else if (!strcmp(name, "power_period_us")) g->power_period_us = whole;
    else if (!strcmp(name, "persistence")) g->persistence = whole;
    else if (!strcmp(name, "limit_mw")) g->limit_mw = whole;
    else if (!strcmp(name, "lock_min")) g->lock_min = whole;
    else if (!strcmp(name, "lock_max")) g->lock_max = whole;
    else if (!strcmp(name, "memory_min")) g->memory_min = whole;
    else if (!strcmp(name, "memory_max")) g->memory_max = whole;
    else result = -1;
    if (before && clock_at(g, g->load) != before) clock_changes(g);
  }
  leave();
  return result;
}

/* Reads one thing, as it is and not as a sensor shows it; -1 for a name or GPU that is not. */
API double fakenvml_get(unsigned i, const char *name) {
  struct state *s = open_state();
  if (!s) return -1;
  double value = -1;
  if (!strcmp(name, "now_s")) value = now_s(s);
  else if (i < s->n_gpus) {
    struct gpu *g = &s->gpus[i];
    advance(s, g);
    if (!strcmp(name, "clock_mhz")) value = clock_at(g, g->load);
    else if (!strcmp(name, "loaded_clock_mhz")) value = clock_at(g, 1);
    else if (!strcmp(name, "memory_mhz")) value = memory_clock(g);
    else if (!strcmp(name, "watts")) value = watts(g, clock_at(g, g->load), g->load);
    else if (!strcmp(name, "energy_mj")) value = g->energy_mj;
    else if (!strcmp(name, "service_s")) value = service_s(g);
    else if (!strcmp(name, "lock_min")) value = g->lock_min;
    else if (!strcmp(name, "lock_max")) value = g->lock_max;
    else if (!strcmp(name, "memory_min")) value = g->memory_min;
    else if (!strcmp(name, "memory_max")) value = g->memory_max;
    else if (!strcmp(name, "limit_mw")) value = g->limit_mw;
    else if (!strcmp(name, "persistence")) value = g->persistence;
    else if (!strcmp(name, "load")) value = g->load;
  }
  leave();
  return value;
}

/* From its (skip+1)th call on, `function` (an exported name, field:ID, or *) fails `times` times (< 0: always)
 * with `code` after `delay_ms`. Code 0 only delays. */
API int fakenvml_inject(const char *function, int code, int skip, int times, unsigned delay_ms) {
  struct state *s = open_state();
  if (!s) return -1;
  int result = -1;
  for (unsigned i = 0; result && i < MAX_FAULTS; i++) {
    struct fault *f = &s->faults[i];
    if (f->function[0]) continue;
    snprintf(f->function, sizeof f->function, "%s", function);
    f->code = code;
    f->skip = skip;
    f->left = times;
    f->delay_ms = delay_ms;
    result = 0;
  }
  leave();
  return result;
}

API void fakenvml_clear_faults(void) {
  struct state *s = open_state();
  if (!s) return;
  memset(s->faults, 0, sizeof s->faults);
  leave();
}

API void fakenvml_reload_driver(void) {
  struct state *s = open_state();
  if (!s) return;
  for (unsigned i = 0; i < s->n_gpus; i++) load_driver(s, &s->gpus[i]);
  leave();
}

/* Moves a manual clock. */
API void fakenvml_advance(double seconds) {
  struct state *s = open_state();
  if (!s) return;
  for (unsigned i = 0; i < s->n_gpus; i++) advance(s, &s->gpus[i]);
  s->manual_s += seconds;
  for (unsigned i = 0; i < s->n_gpus; i++) advance(s, &s->gpus[i]);
  leave();
}
