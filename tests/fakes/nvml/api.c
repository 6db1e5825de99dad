/* The functions that nvidia-ml-py binds. There is no getter for locked clocks, as in the real library.
 * Compiled with OLD_DRIVER a few newer functions are missing (FUNCTION_NOT_FOUND for the binding). */
#include "fakenvml.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define LEAVE(result) do { leave(); return (nvmlReturn_t)(result); } while (0)
#define ENTER \
  int code; \
  struct state *s = enter(__func__, &code); \
  if (!s) return (nvmlReturn_t)code
#define DEVICE \
  ENTER; \
  struct gpu *g = gpu_of(s, device); \
  if (!g) LEAVE(NVML_ERROR_INVALID_ARGUMENT); \
  if (g->lost) LEAVE(NVML_ERROR_GPU_IS_LOST); \
  advance(s, g); \
  const struct kind *k = &KINDS[g->kind]; \
  (void)k
#define NEEDS(condition) if (!(condition)) LEAVE(NVML_ERROR_NOT_SUPPORTED)
#define IS_DISCRETE (k->architecture != ARCH_UNKNOWN)
#define MUST_BE_ROOT if (!may_set(s)) LEAVE(NVML_ERROR_NO_PERMISSION)

#define LIMIT_TDP 0xffffff01u
#define LIMIT_UNLIMITED 0xffffff02u

static struct gpu *gpu_of(struct state *s, nvmlDevice_t device) {
  size_t i = (size_t)device - 0x100;
  return i < s->n_gpus ? &s->gpus[i] : NULL;
}
static nvmlDevice_t handle_of(unsigned i) { return (nvmlDevice_t)(size_t)(0x100 + i); }
static bool may_set(const struct state *s) { return s->permission == 1 || (s->permission == 0 && geteuid() == 0); }

static int text(char *to, unsigned length, const char *from) {
  if (strlen(from) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
  strcpy(to, from);
  return NVML_SUCCESS;
}
static void bus_id(char *to, size_t length, unsigned i) { snprintf(to, length, "%08X:%02X:00.0", 0u, 0x18 + i); }

API nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return (nvmlReturn_t)client_starts(); }
API nvmlReturn_t nvmlInit_v2(void) { return (nvmlReturn_t)client_starts(); }
API nvmlReturn_t nvmlShutdown(void) { ENTER; client_ends(s); LEAVE(NVML_SUCCESS); }

API const char *nvmlErrorString(nvmlReturn_t result) {
  switch ((int)result) {
    case 0: return "The operation was successful";
    case 1: return "NVML was not first initialized with nvmlInit()";
    case 2: return "A supplied argument is invalid";
    case 3: return "The requested operation is not available on the target device";
    case 4: return "The current user does not have permission for the operation";
    case 6: return "A query to find an object was unsuccessful";
    case 7: return "An input argument is not large enough";
    case 9: return "The NVIDIA driver is not loaded";
    case 15: return "The GPU has fallen off the bus or has otherwise become inaccessible";
    default: return "An internal driver error occurred";
  }
}

API nvmlReturn_t nvmlSystemGetDriverVersion(char *to, unsigned n) { ENTER; LEAVE(text(to, n, "580.00.00")); }
API nvmlReturn_t nvmlSystemGetNVMLVersion(char *to, unsigned n) { ENTER; LEAVE(text(to, n, "13.580.00.00")); }
API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *to) { ENTER; *to = 13000; LEAVE(NVML_SUCCESS); }
API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *to) { ENTER; *to = s->n_gpus; LEAVE(NVML_SUCCESS); }

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *to) {
  ENTER;
  if (i >= s->n_gpus) LEAVE(NVML_ERROR_INVALID_ARGUMENT);
  if (s->gpus[i].lost) LEAVE(NVML_ERROR_GPU_IS_LOST);
  *to = handle_of(i);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *to) {
  ENTER;
  for (unsigned i = 0; i < s->n_gpus; i++) {
    if (strcmp(uuid, s->gpus[i].uuid)) continue;
    if (s->gpus[i].lost) LEAVE(NVML_ERROR_GPU_IS_LOST);
    *to = handle_of(i);
    LEAVE(NVML_SUCCESS);
  }
  LEAVE(NVML_ERROR_NOT_FOUND);
}
API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *to, unsigned n) { DEVICE; LEAVE(text(to, n, k->product)); }
API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *to, unsigned n) { DEVICE; LEAVE(text(to, n, g->uuid)); }
API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *to) {
  DEVICE;
  *to = (unsigned)(g - s->gpus);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  unsigned i = (unsigned)(g - s->gpus);
  memset(to, 0, sizeof *to);
  to->bus = 0x18 + i;
  to->pciDeviceId = k->pci_device;
  bus_id(to->busId, sizeof to->busId, i);
  snprintf(to->busIdLegacy, sizeof to->busIdLegacy, "0000:%02X:00.0", to->bus);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = (nvmlDeviceArchitecture_t)k->architecture;
  LEAVE(NVML_SUCCESS);
}

static bool is_symbolic(unsigned mhz) { return mhz == LIMIT_TDP || mhz == LIMIT_UNLIMITED; }

API nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned low, unsigned high) {
  DEVICE;
  NEEDS(IS_DISCRETE && k->architecture >= VOLTA);
  if (is_symbolic(low) != is_symbolic(high) || low > high) LEAVE(NVML_ERROR_INVALID_ARGUMENT);
  MUST_BE_ROOT;
  if (is_symbolic(high)) high = k->top_mhz; /* the table holds nothing above TDP */
  if (is_symbolic(low)) low = k->top_mhz;
  g->lock_min = rounded_clock(k, low);
  g->lock_max = rounded_clock(k, high);
  clock_changes(g);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
  DEVICE;
  NEEDS(IS_DISCRETE && k->architecture >= VOLTA);
  MUST_BE_ROOT;
  if (g->lock_max) clock_changes(g);
  g->lock_min = g->lock_max = 0;
  LEAVE(NVML_SUCCESS);
}
#ifndef OLD_DRIVER
API nvmlReturn_t nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t device, unsigned low, unsigned high) {
  DEVICE;
  NEEDS(IS_DISCRETE && k->architecture >= AMPERE);
  if (low > high) LEAVE(NVML_ERROR_INVALID_ARGUMENT);
  MUST_BE_ROOT;
  g->memory_min = low;
  g->memory_max = high;
  clock_changes(g);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t device) {
  DEVICE;
  NEEDS(IS_DISCRETE && k->architecture >= AMPERE);
  MUST_BE_ROOT;
  if (g->memory_max) clock_changes(g);
  g->memory_min = g->memory_max = 0;
  LEAVE(NVML_SUCCESS);
}
#endif
API nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned *count, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  unsigned room = *count, n = 0;
  while (n < MAX_MEMORY_CLOCKS && k->memory_mhz[n]) n++;
  *count = n;
  if (!to || room < n) LEAVE(NVML_ERROR_INSUFFICIENT_SIZE);
  memcpy(to, k->memory_mhz, n * sizeof *to);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned memory, unsigned *count, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  bool known = false;
  for (unsigned i = 0; i < MAX_MEMORY_CLOCKS; i++) known = known || (memory && k->memory_mhz[i] == memory);
  if (!known) LEAVE(NVML_ERROR_NOT_FOUND);
  unsigned room = *count, n = n_clocks(k);
  *count = n;
  if (!to || room < n) LEAVE(NVML_ERROR_INSUFFICIENT_SIZE);
  for (unsigned i = 0; i < n; i++) to[i] = clock_of(k, i);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE && type <= NVML_CLOCK_MEM);
  *to = type == NVML_CLOCK_MEM ? memory_clock(g) : clock_at(g, g->load);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE && type <= NVML_CLOCK_MEM);
  *to = type == NVML_CLOCK_MEM ? k->memory_mhz[0] : k->top_mhz;
  LEAVE(NVML_SUCCESS);
}
#ifdef OLD_DRIVER
API nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *to) {
#else
API nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *to) {
#endif
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = event_reasons(g);
  LEAVE(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *low, unsigned *high) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *low = k->min_mw;
  *high = k->max_mw;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = g->limit_mw;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = k->default_mw;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned mw) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  if (mw < k->min_mw || mw > k->max_mw) LEAVE(NVML_ERROR_INVALID_ARGUMENT);
  MUST_BE_ROOT;
  g->limit_mw = mw;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = k->architecture >= AMPERE && !k->is_ga100 ? average_mw(g) : instant_mw(g);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *to) {
  DEVICE;
  NEEDS(IS_DISCRETE && k->architecture >= VOLTA);
  *to = counter_mj(g);
  LEAVE(NVML_SUCCESS);
}

#ifndef OLD_DRIVER
static int field_of(struct gpu *g, nvmlFieldValue_t *v) {
  const struct kind *k = &KINDS[g->kind];
  bool averages = k->architecture >= AMPERE && !k->is_ga100;
  if (!IS_DISCRETE || v->scopeId) return NVML_ERROR_NOT_SUPPORTED; /* scope 0 is the GPU */
  v->valueType = 1;
  switch (v->fieldId) {
    case 185: v->value.uiVal = average_mw(g); return averages ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case 186: v->value.uiVal = instant_mw(g); return NVML_SUCCESS;
    case 187: v->value.uiVal = k->min_mw; return NVML_SUCCESS;
    case 188: v->value.uiVal = k->max_mw; return NVML_SUCCESS;
    case 189: v->value.uiVal = k->default_mw; return NVML_SUCCESS;
    case 190: case 192: v->value.uiVal = g->limit_mw; return NVML_SUCCESS;
    case 83: case 191:
      v->valueType = 3;
      v->value.ullVal = counter_mj(g);
      return k->architecture >= VOLTA ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    default: return NVML_ERROR_NOT_SUPPORTED;
  }
}
/* The call succeeds; each value says by itself whether it could be had. */
API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
  DEVICE;
  for (int i = 0; i < count; i++) {
    int failed = field_fault(s, values[i].fieldId);
    values[i].nvmlReturn = (nvmlReturn_t)(failed ? failed : field_of(g, &values[i]));
    if (values[i].nvmlReturn) values[i].value.ullVal = 0xdeadbeef; /* undefined: nobody may look at it */
  }
  LEAVE(NVML_SUCCESS);
}
#endif

API nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  *to = (nvmlEnableState_t)g->persistence;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  MUST_BE_ROOT;
  g->persistence = mode != 0;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
  DEVICE;
  NEEDS(k->is_ga100 || k->architecture >= HOPPER);
  *current = g->mig;
  *pending = g->mig_pending;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *to) {
  DEVICE;
  NEEDS(IS_DISCRETE && !g->mig);
  to->gpu = (unsigned)(g->load * 100);
  to->memory = to->gpu / 2;
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned *to) {
  DEVICE;
  NEEDS(IS_DISCRETE && !sensor);
  *to = 30 + (unsigned)(g->watts / 12);
  LEAVE(NVML_SUCCESS);
}
API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *to) {
  DEVICE;
  NEEDS(IS_DISCRETE);
  to->total = 40ULL << 30;
  to->used = 1ULL << 30;
  to->free = to->total - to->used;
  LEAVE(NVML_SUCCESS);
}
