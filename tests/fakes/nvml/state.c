/* The shared file: one lock, the clients that are alive, the faults that are to happen. */
#define _GNU_SOURCE
#include "fakenvml.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x504e564du

static pthread_mutex_t in_process = PTHREAD_MUTEX_INITIALIZER;
static struct state *mapped;
static int fd = -1;
static pid_t opened_by;
static char opened[4096]; /* the path: tests of one process use one file each */
static unsigned inits; /* nvmlInit calls of this process that await their nvmlShutdown */

double now_s(const struct state *s) {
  if (s->manual) return s->manual_s;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* As after modprobe: no lock, the default limit, counters at zero. MIG stays, it lives on the board. */
void load_driver(struct state *s, struct gpu *g) {
  g->lock_min = g->lock_max = g->memory_min = g->memory_max = 0;
  g->limit_mw = KINDS[g->kind].default_mw;
  g->persistence = 0;
  g->loaded_s = g->now_s = g->changed_s = now_s(s);
  g->changed_s -= 3600;
  g->energy_mj = g->watts = g->shown_tick_s = 0;
  g->shown_mj = 0;
  g->n_history = 0;
}

static int add_gpu(struct state *s, const char *name) {
  if (s->n_gpus >= MAX_GPUS) return -1;
  for (unsigned i = 0; i < N_KINDS; i++) {
    if (strcmp(KINDS[i].name, name)) continue;
    struct gpu *g = &s->gpus[s->n_gpus];
    g->kind = i;
    g->counter_gain = 1;
    g->energy_period_us = KINDS[i].energy_period_us;
    g->power_period_us = KINDS[i].power_period_us;
    snprintf(g->uuid, sizeof g->uuid, "GPU-5eed0000-0000-4000-8000-%08x%04x", i, s->n_gpus);
    load_driver(s, g);
    s->n_gpus++;
    return 0;
  }
  return -1;
}

static int fill(struct state *s) {
  const char *gpus = getenv("FAKE_NVML_GPUS"), *clock = getenv("FAKE_NVML_CLOCK");
  char names[256];
  memset(s, 0, sizeof *s);
  s->manual = clock && !strcmp(clock, "manual");
  s->manual_s = 1000;
  snprintf(names, sizeof names, "%s", gpus ? gpus : "H100");
  for (char *rest, *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
    if (add_gpu(s, name)) return -1;
  s->magic = MAGIC;
  return 0;
}

/* Maps the file, or finds it mapped. A child shares its parent's open file, and with it the lock: reopen. */
struct state *open_state(void) {
  pthread_mutex_lock(&in_process);
  const char *path = getenv("FAKE_NVML_STATE");
  if (mapped && (opened_by != getpid() || !path || strcmp(path, opened))) {
    close(fd);
    munmap(mapped, sizeof *mapped);
    mapped = NULL;
    inits = 0;
  }
  if (!mapped) {
    if (!path || strlen(path) >= sizeof opened || (fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666)) < 0) goto none;
    fchmod(fd, 0666); /* set by root, read by others; fails where it is not ours, and need not succeed there */
    flock(fd, LOCK_EX);
    if (ftruncate(fd, sizeof *mapped)) goto closed;
    void *at = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) goto closed;
    mapped = at;
    opened_by = getpid();
    strcpy(opened, path);
    if (mapped->magic != MAGIC && fill(mapped)) {
      munmap(mapped, sizeof *mapped);
      mapped = NULL;
      goto closed;
    }
    return mapped;
  }
  flock(fd, LOCK_EX);
  return mapped;
closed:
  flock(fd, LOCK_UN);
  close(fd);
none:
  pthread_mutex_unlock(&in_process);
  return NULL;
}

void leave(void) {
  flock(fd, LOCK_UN);
  pthread_mutex_unlock(&in_process);
}

/* The next fault for a function: waits as long as it says, without the lock, and returns its code. */
static int fault_of(struct state *s, const char *function) {
  for (unsigned i = 0; i < MAX_FAULTS; i++) {
    struct fault *f = &s->faults[i];
    if (!f->function[0] || (strcmp(f->function, function) && strcmp(f->function, "*"))) continue;
    if (f->skip > 0) {
      f->skip--;
      continue;
    }
    if (!f->left) continue;
    if (f->left > 0) f->left--;
    int code = f->code;
    unsigned delay = f->delay_ms;
    if (delay) {
      leave();
      usleep(delay * 1000);
      open_state();
    }
    if (code) return code;
  }
  return 0;
}

int field_fault(struct state *s, unsigned field) {
  char name[32];
  snprintf(name, sizeof name, "field:%u", field);
  return fault_of(s, name);
}

static unsigned drop_dead(struct state *s) {
  unsigned alive = 0;
  for (unsigned i = 0; i < MAX_CLIENTS; i++) {
    if (s->clients[i] && kill(s->clients[i], 0) && errno == ESRCH) s->clients[i] = 0;
    alive += s->clients[i] != 0;
  }
  return alive;
}

/* Without persistence the driver is unloaded when its last client has gone, however it went. */
static void unload_if_unused(struct state *s) {
  if (drop_dead(s)) return;
  for (unsigned i = 0; i < s->n_gpus; i++)
    if (!s->gpus[i].persistence) load_driver(s, &s->gpus[i]);
}

struct state *enter(const char *function, int *code) {
  struct state *s = open_state();
  if (!s) {
    *code = NVML_ERROR_UNINITIALIZED;
    return NULL;
  }
  *code = fault_of(s, function);
  if (!*code && !inits) *code = NVML_ERROR_UNINITIALIZED;
  if (!*code) return s;
  leave();
  return NULL;
}

int client_starts(void) {
  struct state *s = open_state();
  if (!s) return NVML_ERROR_DRIVER_NOT_LOADED;
  int code = fault_of(s, "nvmlInit");
  if (!code) {
    if (!inits) {
      unload_if_unused(s);
      unsigned i = 0;
      while (i < MAX_CLIENTS && s->clients[i]) i++;
      if (i == MAX_CLIENTS) code = NVML_ERROR_UNKNOWN;
      else s->clients[i] = getpid();
    }
    if (!code) inits++;
  }
  leave();
  return code;
}

void client_ends(struct state *s) {
  if (--inits) return;
  for (unsigned i = 0; i < MAX_CLIENTS; i++)
    if (s->clients[i] == getpid()) s->clients[i] = 0;
  unload_if_unused(s);
}
