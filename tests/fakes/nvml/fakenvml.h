/* A libnvidia-ml.so.1 for tests: pretended GPUs whose clocks, power and energy follow from what was set.
 *
 * The state is one file that every process maps (FAKE_NVML_STATE), because whoever sets a clock and whoever
 * reads it are different processes, and because a lock outlives the process that set it.
 * FAKE_NVML_GPUS ("A100-40,H100") names the GPUs when the file is made, FAKE_NVML_CLOCK=manual makes time
 * stand still until fakenvml_advance. Numbers that no source gives are invented; kinds.c says which. */
#ifndef FAKENVML_H
#define FAKENVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef CHECK_ABI /* let the compiler compare our prototypes with NVIDIA's own header */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include "nvml.h"
#else
typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef unsigned nvmlClockType_t, nvmlTemperatureSensors_t, nvmlEnableState_t, nvmlDeviceArchitecture_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct {
  char busIdLegacy[16];
  unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;
typedef union {
  double dVal;
  int siVal;
  unsigned uiVal;
  unsigned long ulVal;
  unsigned long long ullVal;
  long long sllVal;
  unsigned short usVal;
} nvmlValue_t;
typedef struct {
  unsigned fieldId, scopeId;
  long long timestamp, latencyUsec;
  unsigned valueType;
  nvmlReturn_t nvmlReturn;
  nvmlValue_t value;
} nvmlFieldValue_t;
enum {
  NVML_SUCCESS = 0,
  NVML_ERROR_UNINITIALIZED = 1,
  NVML_ERROR_INVALID_ARGUMENT = 2,
  NVML_ERROR_NOT_SUPPORTED = 3,
  NVML_ERROR_NO_PERMISSION = 4,
  NVML_ERROR_NOT_FOUND = 6,
  NVML_ERROR_INSUFFICIENT_SIZE = 7,
  NVML_ERROR_DRIVER_NOT_LOADED = 9,
  NVML_ERROR_GPU_IS_LOST = 15,
  NVML_ERROR_UNKNOWN = 999
};
enum { NVML_CLOCK_GRAPHICS = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };
#endif

#define MAX_GPUS 4
#define MAX_CLIENTS 64
#define MAX_FAULTS 32
#define MAX_MEMORY_CLOCKS 6
#define HISTORY 1024 /* moments at which the power changed; a second's worth is read back */

enum { PASCAL = 4, VOLTA = 5, TURING = 6, AMPERE = 7, HOPPER = 9, ARCH_UNKNOWN = -1 };

/* What does not change about a model of GPU. Clocks in MHz, power in mW, periods in µs. */
struct kind {
  const char *name, *product;
  int architecture;
  bool is_ga100; /* reports instantaneous power although it is an Ampere */
  unsigned pci_device;
  unsigned low_mhz, top_mhz;
  double step_mhz;
  unsigned idle_mhz;
  unsigned memory_mhz[MAX_MEMORY_CLOCKS]; /* descending, 0 ends it */
  unsigned min_mw, max_mw, default_mw;
  unsigned energy_period_us, power_period_us, power_window_us;
  double idle_w, memory_w, linear_w, cubic_w; /* see watts() in plant.c */
};

enum heat { COOL = 0, SW_THERMAL = 1, HW_THERMAL = 2, POWER_BRAKE = 3 };

struct gpu {
  unsigned kind;
  char uuid[48];
  unsigned lock_min, lock_max; /* 0, 0: not locked */
  unsigned memory_min, memory_max;
  unsigned limit_mw;
  unsigned persistence, mig, mig_pending;
  unsigned heat;
  unsigned ignores_locks; /* a lock succeeds and is not honoured */
  unsigned lost;
  double load; /* 0 to 1 */
  double counter_gain; /* what the energy counter shows per true joule */
  unsigned energy_period_us, power_period_us;
  double changed_s; /* when the clock last changed */
  double unloaded_s; /* when the load went away */
  double loaded_s;  /* when the driver was loaded */
  double now_s, energy_mj, watts;
  double shown_tick_s; /* the counter as it was latched at a refresh */
  unsigned long long shown_mj;
  unsigned n_history;
  struct { double t_s, mj; } history[HISTORY];
};

struct fault {
  char function[64];
  int code, skip, left; /* left < 0: for ever */
  unsigned delay_ms;
};

struct state {
  unsigned magic, n_gpus;
  unsigned manual;
  double manual_s;
  int permission; /* 0: root may set, 1: everybody, 2: nobody */
  pid_t clients[MAX_CLIENTS];
  struct fault faults[MAX_FAULTS];
  struct gpu gpus[MAX_GPUS];
};

extern const struct kind KINDS[];
extern const unsigned N_KINDS;

/* state.c */
struct state *enter(const char *function, int *code); /* locks; NULL with *code if the call fails here */
struct state *open_state(void);                         /* locks; NULL if there is no usable file */
void leave(void);
int field_fault(struct state *s, unsigned field);
int client_starts(void);
void client_ends(struct state *s);
double now_s(const struct state *s);
void load_driver(struct state *s, struct gpu *g);

/* plant.c */
void advance(struct state *s, struct gpu *g);
void clock_changes(struct gpu *g);
unsigned clock_at(const struct gpu *g, double load);
unsigned memory_clock(const struct gpu *g);
double watts(const struct gpu *g, unsigned mhz, double load);
double energy_at(const struct gpu *g, double t_s);
unsigned long long counter_mj(struct gpu *g);
unsigned instant_mw(const struct gpu *g);
unsigned average_mw(const struct gpu *g);
unsigned long long event_reasons(const struct gpu *g);
unsigned n_clocks(const struct kind *k);
unsigned clock_of(const struct kind *k, unsigned index); /* descending */
unsigned rounded_clock(const struct kind *k, unsigned mhz);

#endif
