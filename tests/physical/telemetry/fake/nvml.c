// A libnvidia-ml.so.1 for tests: the genuine binding calls it, a file that the test maps too says what it answers.
//
// FAKE_NVML_STATE names that file (fake/__init__.py has the same layout in ctypes). Devices are listed as they were
// at initialisation, as the real library does it: one that vanishes answers "GPU is lost" until the library
// is shut down and opened again, one that is added is seen only then. Compiled with -DOLD_DRIVER, symbols that
// younger drivers added are not there.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS 16
#define LINKS 18

typedef struct {
  unsigned present, error, hang, delay_us;
  unsigned util, memory_util, temp_c, memory_temp_c;
  unsigned power_mw, power_limit_mw, default_power_limit_mw, sm_mhz;
  unsigned memory_mhz, max_sm_mhz, max_memory_mhz, bus_width;
  unsigned cores, slowdown_c, shutdown_c, mig;
  unsigned pcie_gen, pcie_width, max_pcie_gen, max_pcie_width;
  unsigned numa, bus, nvlinks, nvlink_version;
  unsigned nvlink_mbps, process_count, util_error, has_fields;
  int nvlink_peer[LINKS];  // slot of the GPU at the other end; -1: a switch
  unsigned process_pid[4];
  unsigned long long process_bytes[4];
  unsigned long long throttle, memory_total, memory_used, ecc_corrected, ecc_uncorrected;
  unsigned long long pcie_tx_bytes, pcie_rx_bytes, nvlink_tx_kib, nvlink_rx_kib;
  unsigned long long thermal_ns, power_ns, energy_mj, calls;
  unsigned calls_until_error, error_later;  // a fault in the middle of a poll
  unsigned long long throttled_at_ns, lost_at_ns;
  char name[64], uuid[48];
} gpu_t;

typedef struct {
  unsigned init_error, library_error, inits, closes;
  unsigned hang_init, pad;
  char driver[32];
  gpu_t gpu[SLOTS];
} state_t;

static state_t *S;
static state_t nothing;
static int refs, listed[SLOTS], count;

typedef struct { char legacy[16]; unsigned domain, bus, device, pci_device, pci_subsystem; char id[32]; } pci_t;
typedef void *dev;

unsigned long fake_nvml_layout(void) { return sizeof(state_t); }

static int slot_of(dev d) {
  long i = (long)d - 1;
  return i >= 0 && i < count ? listed[i] : -1;
}

// What each call on a device begins with: the library's and the device's own faults.
static int entered(dev d, gpu_t **out) {
  if (!refs) return 1;
  if (S->library_error) return (int)S->library_error;
  int slot = slot_of(d);
  if (slot < 0) return 2;
  gpu_t *g = &S->gpu[slot];
  __atomic_add_fetch(&g->calls, 1, __ATOMIC_SEQ_CST);
  if (g->delay_us) usleep(g->delay_us);
  while (__atomic_load_n(&g->hang, __ATOMIC_SEQ_CST)) usleep(500);
  if (g->calls_until_error && --g->calls_until_error == 0) g->error = g->error_later;
  if (!g->present) return 15;
  if (g->error) return (int)g->error;
  *out = g;
  return 0;
}
#define ENTER(d) gpu_t *g; { int r = entered(d, &g); if (r) return r; }
#define GETTER(name, type, value) int name(dev d, type *out) { ENTER(d) *out = value; return 0; }

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (!S) {
    const char *path = getenv("FAKE_NVML_STATE");
    int fd = path ? open(path, O_RDWR) : -1;
    S = &nothing;
    if (fd >= 0) {
      void *m = mmap(0, sizeof(state_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      close(fd);
      if (m != MAP_FAILED) S = m;
    }
  }
  while (__atomic_load_n(&S->hang_init, __ATOMIC_SEQ_CST)) usleep(500);
  if (S->init_error) return (int)S->init_error;
  if (refs++ == 0) {
    S->inits++;
    count = 0;
    for (int i = 0; i < SLOTS; i++) if (S->gpu[i].present) listed[count++] = i;
  }
  return 0;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
  if (!refs) return 1;
  if (--refs == 0) { count = 0; S->closes++; }
  return 0;
}
const char *nvmlErrorString(int r) {
  switch (r) {
    case 0: return "Success";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
  }
}
static int library(void) { return !refs ? 1 : (int)S->library_error; }
int nvmlSystemGetDriverVersion(char *b, unsigned n) {
  int r = library();
  if (!r) snprintf(b, n, "%s", S->driver);
  return r;
}
int nvmlDeviceGetCount_v2(unsigned *c) { int r = library(); if (!r) *c = (unsigned)count; return r; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, dev *d) {
  int r = library();
  if (r) return r;
  if ((int)i >= count) return 2;
  if (S->gpu[listed[i]].error == 15) return 15;
  *d = (dev)(long)(i + 1);
  return 0;
}
int nvmlDeviceGetName(dev d, char *b, unsigned n) { ENTER(d) snprintf(b, n, "%s", g->name); return 0; }
int nvmlDeviceGetUUID(dev d, char *b, unsigned n) { ENTER(d) snprintf(b, n, "%s", g->uuid); return 0; }
static void pci_of(gpu_t *g, pci_t *p) {
  memset(p, 0, sizeof *p);
  p->bus = g->bus;
  snprintf(p->legacy, sizeof p->legacy, "0000:%02X:00.0", g->bus);
  snprintf(p->id, sizeof p->id, "00000000:%02X:00.0", g->bus);
}
int nvmlDeviceGetPciInfo_v3(dev d, pci_t *p) { ENTER(d) pci_of(g, p); return 0; }

// --- what is asked ten times a second
typedef struct { unsigned gpu, memory; } util_t;
int nvmlDeviceGetUtilizationRates(dev d, util_t *u) {
  ENTER(d)
  if (g->util_error) return (int)g->util_error;
  u->gpu = g->util;
  u->memory = g->memory_util;
  return 0;
}
int nvmlDeviceGetTemperature(dev d, int sensor, unsigned *t) { ENTER(d) (void)sensor; *t = g->temp_c; return 0; }
GETTER(nvmlDeviceGetPowerUsage, unsigned, g->power_mw)
typedef struct { unsigned long long total, free, used; } mem_t;
int nvmlDeviceGetMemoryInfo(dev d, mem_t *m) {
  ENTER(d)
  m->total = g->memory_total;
  m->used = g->memory_used;
  m->free = m->total - m->used;
  return 0;
}
int nvmlDeviceGetClockInfo(dev d, int which, unsigned *mhz) {
  ENTER(d)
  *mhz = which == 2 ? g->memory_mhz : g->sm_mhz;
  return 0;
}
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, g->throttle)

// --- what changes slowly
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, g->power_limit_mw)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, g->power_limit_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, g->default_power_limit_mw)
int nvmlDeviceGetTotalEccErrors(dev d, int type, int counter, unsigned long long *out) {
  ENTER(d)
  (void)counter;
  *out = type ? g->ecc_uncorrected : g->ecc_corrected;
  return 0;
}
int nvmlDeviceGetMigMode(dev d, unsigned *now, unsigned *pending) {
  ENTER(d)
  if (g->mig > 1) return 3;
  *now = *pending = g->mig;
  return 0;
}
int nvmlDeviceGetPcieThroughput(dev d, int counter, unsigned *kib) {
  ENTER(d)
  usleep(20000);  // the real one measures for 20 ms
  *kib = (unsigned)((counter ? g->pcie_rx_bytes : g->pcie_tx_bytes) >> 10);
  return 0;
}
typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } process_t;
int nvmlDeviceGetComputeRunningProcesses_v3(dev d, unsigned *n, process_t *list) {
  ENTER(d)
  unsigned room = *n;
  *n = g->process_count;
  if (!g->process_count) return 0;
  if (!list || room < g->process_count) return 7;
  for (unsigned i = 0; i < g->process_count; i++)
    list[i] = (process_t){g->process_pid[i], g->process_bytes[i], 0xffffffffu, 0xffffffffu};
  return 0;
}

// --- what an inventory asks
int nvmlDeviceGetTemperatureThreshold(dev d, int which, unsigned *t) {
  ENTER(d)
  unsigned value = which == 0 ? g->shutdown_c : which == 1 ? g->slowdown_c : 0;
  if (!value) return 3;
  *t = value;
  return 0;
}
int nvmlDeviceGetMaxClockInfo(dev d, int which, unsigned *mhz) {
  ENTER(d)
  *mhz = which == 2 ? g->max_memory_mhz : g->max_sm_mhz;
  return 0;
}
GETTER(nvmlDeviceGetMemoryBusWidth, unsigned, g->bus_width)
GETTER(nvmlDeviceGetNumGpuCores, unsigned, g->cores)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, g->pcie_gen)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, g->pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, g->max_pcie_gen)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, g->max_pcie_width)
int nvmlDeviceGetNumaNodeId(dev d, unsigned *node) { ENTER(d) *node = g->numa; return 0; }
int nvmlDeviceGetMemoryAffinity(dev d, unsigned size, unsigned long *set, int scope) {
  ENTER(d)
  (void)scope;
  memset(set, 0, size * sizeof *set);
  set[0] = 1ul << g->numa;
  return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(dev a, dev b, int *level) {
  int i = slot_of(a), j = slot_of(b);
  if (i < 0 || j < 0) return 2;
  *level = S->gpu[i].numa == S->gpu[j].numa ? 30 : 50;
  return 0;
}
int nvmlDeviceGetP2PStatus(dev a, dev b, int what, int *status) {
  int i = slot_of(a), j = slot_of(b);
  if (i < 0 || j < 0) return 2;
  *status = 5;
  if (what == 2)
    for (unsigned l = 0; l < S->gpu[i].nvlinks; l++)
      if (S->gpu[i].nvlink_peer[l] == j || S->gpu[i].nvlink_peer[l] == -1) *status = 0;
  return 0;
}
int nvmlDeviceGetNvLinkState(dev d, unsigned link, unsigned *active) {
  ENTER(d)
  if (!g->nvlinks) return 3;
  if (link >= LINKS) return 2;
  *active = link < g->nvlinks;
  return 0;
}
int nvmlDeviceGetNvLinkVersion(dev d, unsigned link, unsigned *version) {
  ENTER(d)
  if (link >= g->nvlinks) return 3;
  *version = g->nvlink_version;
  return 0;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(dev d, unsigned link, pci_t *p) {
  ENTER(d)
  if (link >= g->nvlinks) return 3;
  int peer = g->nvlink_peer[link];
  if (peer >= 0) pci_of(&S->gpu[peer], p);
  else { memset(p, 0, sizeof *p); snprintf(p->id, sizeof p->id, "00000000:%02X:00.0", 0xC0 + link % 4); }
  return 0;
}

#ifndef OLD_DRIVER
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, g->throttle)
int nvmlDeviceGetNvLinkRemoteDeviceType(dev d, unsigned link, unsigned *type) {
  ENTER(d)
  if (link >= g->nvlinks) return 3;
  *type = g->nvlink_peer[link] >= 0 ? 0 : 2;
  return 0;
}
typedef struct {
  unsigned field, scope;
  long long timestamp, latency_us;
  unsigned type;
  int result;
  union { double d; unsigned u; unsigned long long ull; } value;
} field_t;
int nvmlDeviceGetFieldValues(dev d, int n, field_t *f) {
  ENTER(d)
  for (int i = 0; i < n; i++) {
    f[i].result = 0;
    f[i].type = 3;
    switch (f[i].field) {
      case 3: f[i].value.ull = g->ecc_corrected; break;
      case 4: f[i].value.ull = g->ecc_uncorrected; break;
      case 74: f[i].value.ull = g->power_ns; break;
      case 75: f[i].value.ull = g->thermal_ns; break;
      case 82: f[i].type = 1; f[i].value.u = g->memory_temp_c; break;
      case 83: f[i].value.ull = g->energy_mj; break;
      case 90: f[i].type = 1; f[i].value.u = g->nvlink_mbps; if (!g->nvlinks) f[i].result = 3; break;
      case 94: f[i].type = 1; f[i].value.u = 0; break;
      case 138: f[i].value.ull = g->nvlink_tx_kib; if (!g->nvlinks) f[i].result = 3; break;
      case 139: f[i].value.ull = g->nvlink_rx_kib; if (!g->nvlinks) f[i].result = 3; break;
      case 197: f[i].value.ull = g->pcie_tx_bytes; break;
      case 198: f[i].value.ull = g->pcie_rx_bytes; break;
      default: f[i].result = 3;
    }
    if (!g->has_fields && f[i].field > 90) f[i].result = 3;
  }
  return 0;
}
#endif
