/* What the hardware does: which clock runs, what it draws, what its sensors show. */
#include "fakenvml.h"

#include <math.h>

#define SPURIOUS_S 0.06 /* how long a clock change shows as a hardware slowdown */
#define AVERAGE_S 1.0
#define LINGER_S 0.5 /* the clock stays up for a while when the load goes; invented */

static const struct kind *kind(const struct gpu *g) { return &KINDS[g->kind]; }

/* Steps are counted from the top and shown as whole MHz, rounded down: 1530, 1522, 1515, ... */
unsigned n_clocks(const struct kind *k) { return (unsigned)((k->top_mhz - k->low_mhz) / k->step_mhz + 1e-6) + 1; }
unsigned clock_of(const struct kind *k, unsigned index) { return (unsigned)(k->top_mhz - index * k->step_mhz); }

/* The highest clock of the table that is not above `mhz`; the lowest one for anything below it. */
unsigned rounded_clock(const struct kind *k, unsigned mhz) {
  unsigned n = n_clocks(k);
  for (unsigned i = 0; i < n; i++)
    if (clock_of(k, i) <= mhz) return clock_of(k, i);
  return clock_of(k, n - 1);
}

unsigned memory_clock(const struct gpu *g) {
  const unsigned *table = kind(g)->memory_mhz;
  if (!g->memory_max || g->ignores_locks) return table[0];
  unsigned lowest = 0;
  for (unsigned i = 0; i < MAX_MEMORY_CLOCKS && table[i]; i++) {
    lowest = table[i];
    if (table[i] <= g->memory_max) break;
  }
  return lowest;
}

/* Watts at a clock and a load: idle, memory, and a part that grows with the clock, at last with voltage too. */
double watts(const struct gpu *g, unsigned mhz, double load) {
  const struct kind *k = kind(g);
  if (!k->top_mhz) return 0;
  double x = (double)mhz / k->top_mhz, m = (double)memory_clock(g) / k->memory_mhz[0];
  return k->idle_w + k->memory_w * m * (0.5 + 0.5 * load) + load * (k->linear_w * x + k->cubic_w * x * x * x);
}

static unsigned wanted_clock(const struct gpu *g) {
  const struct kind *k = kind(g);
  unsigned low = k->low_mhz, high = k->top_mhz;
  if (g->lock_max && !g->ignores_locks) low = g->lock_min, high = g->lock_max;
  if (g->heat != COOL && high > k->top_mhz / 2) high = rounded_clock(k, k->top_mhz / 2);
  return high > low || g->heat != COOL ? high : low;
}

static bool is_idle(const struct gpu *g, double load) {
  return load <= 0 && (!g->unloaded_s || g->now_s - g->unloaded_s > LINGER_S);
}

/* The clock that runs: without load the idle clock, locked or not; above the power limit a lower one. */
unsigned clock_at(const struct gpu *g, double load) {
  const struct kind *k = kind(g);
  if (!k->top_mhz) return 0;
  if (is_idle(g, load)) return k->idle_mhz;
  unsigned wanted = wanted_clock(g), n = n_clocks(k);
  for (unsigned i = 0; i < n; i++) {
    unsigned mhz = clock_of(k, i);
    if (mhz <= wanted && watts(g, mhz, load) * 1000 <= g->limit_mw) return mhz;
  }
  return clock_of(k, n - 1);
}

/* Integrates up to now. Called before anything that changes what is drawn, and before every reading. */
void advance(struct state *s, struct gpu *g) {
  double t = now_s(s), drawn = watts(g, clock_at(g, g->load), g->load);
  if (drawn != g->watts || !g->n_history) {
    unsigned i = g->n_history++ % HISTORY;
    g->history[i].t_s = g->now_s;
    g->history[i].mj = g->energy_mj;
    g->watts = drawn;
  }
  if (t > g->now_s) {
    g->energy_mj += drawn * (t - g->now_s) * 1000;
    g->now_s = t;
  }
}

void clock_changes(struct gpu *g) { g->changed_s = g->now_s; }

/* The true energy since the driver was loaded, at a moment of the past; power is constant in between. */
double energy_at(const struct gpu *g, double t_s) {
  double end_t = g->now_s, end_mj = g->energy_mj;
  unsigned kept = g->n_history < HISTORY ? g->n_history : HISTORY;
  for (unsigned back = 1; back <= kept; back++) {
    unsigned i = (g->n_history - back) % HISTORY;
    double t0 = g->history[i].t_s, mj0 = g->history[i].mj;
    if (t_s >= t0) return end_t > t0 ? mj0 + (end_mj - mj0) * (t_s - t0) / (end_t - t0) : mj0;
    end_t = t0;
    end_mj = mj0;
  }
  return end_mj;
}

static double tick_s(const struct gpu *g, unsigned period_us) {
  double period = period_us / 1e6;
  return g->loaded_s + floor((g->now_s - g->loaded_s) / period + 1e-9) * period;
}

/* Latched at each refresh, so that rounding cannot make it go back by a millijoule in between. */
unsigned long long counter_mj(struct gpu *g) {
  double tick = tick_s(g, g->energy_period_us);
  if (tick != g->shown_tick_s) {
    unsigned long long mj = (unsigned long long)(energy_at(g, tick) * g->counter_gain);
    if (mj > g->shown_mj) g->shown_mj = mj;
    g->shown_tick_s = tick;
  }
  return g->shown_mj;
}

static unsigned mean_mw(const struct gpu *g, double window_s) {
  double end = tick_s(g, g->power_period_us), begin = end - window_s;
  if (begin < g->loaded_s) begin = g->loaded_s;
  if (end <= begin) return (unsigned)(g->watts * 1000);
  return (unsigned)((energy_at(g, end) - energy_at(g, begin)) / (end - begin));
}

unsigned instant_mw(const struct gpu *g) { return mean_mw(g, kind(g)->power_window_us / 1e6); }
unsigned average_mw(const struct gpu *g) { return mean_mw(g, AVERAGE_S); }

unsigned long long event_reasons(const struct gpu *g) {
  unsigned long long reasons = 0;
  if (is_idle(g, g->load)) return 0x1;
  if (g->now_s - g->changed_s < SPURIOUS_S) reasons |= 0x8;
  if (g->heat == SW_THERMAL) reasons |= 0x20;
  if (g->heat == HW_THERMAL) reasons |= 0x48;
  if (g->heat == POWER_BRAKE) reasons |= 0x88;
  if (clock_at(g, g->load) < wanted_clock(g)) reasons |= 0x4;
  return reasons;
}
