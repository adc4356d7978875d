/* nvml.c - a test double of libnvidia-ml.so.1 at the C ABI.
 *
 * Built by conftest.py, with gcc alone.
 * Use:    LD_LIBRARY_PATH=DIR FAKE_NVML_CONF=SCRIPT python -c 'import pynvml; ...'
 *
 * Needs no NVIDIA header: struct layouts are restated here. They were compared with nvml.h 13.5.37.
 *
 * FAKE_NVML_CONF   script file, re-read when its mtime/size changes (looked at every 20 ms)
 * With mig_mode = 1 a parent GPU answers NOT_SUPPORTED for utilization, codecs and remapped rows,
 * as captures of a real H200 with MIG on do (utkuozdemir/nvidia_gpu_exporter testdata, 590.48.01).
 * FAKE_NVML_TRACE  file that gets "function calls" lines when the process ends
 *
 * Script: one "key = value" a line, '#' comments. N is a GPU index or '*'.
 *   gpus = 8            driver = 580.159.03      nvml = 13.580.159.03   cuda = 13000
 *   pcie_sample_ms = 20        time nvmlDeviceGetPcieThroughput blocks, as the real one does
 *   gpu.N.name = NVIDIA H200   gpu.N.uuid = GPU-...  gpu.N.serial = ...
 *   gpu.N.<field> = number     any name in the FIELDS list below
 *   gpu.N.unset = f1 f2        these fields answer NOT_SUPPORTED (their getters and field ids)
 *   gpu.N.proc = pid:bytes[:C|G|M[:gi:ci[:sm:mem]]]   bytes '-' = not available (adds one)
 *   gpu.N.mig = gi:ci:total:used                      adds one MIG device
 *   gpu.N.err.<function|*> = NOT_SUPPORTED | GPU_IS_LOST | UNKNOWN | ... | number
 *   gpu.N.hang.<function|*> = seconds                 sleeps, then answers as usual
 *   sys.err.<function> / sys.hang.<function>          for calls without a device
 *   field.N.<id> = number     raw nvmlDeviceGetFieldValues value (as unsigned long long)
 *   xid.SEQ = gpu:code        one XID event, delivered once, when SEQ > last delivered
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int R;
enum { OK = 0, UNINIT = 1, INVAL = 2, NOTSUP = 3, NOPERM = 4, NOTFOUND = 6, TOOSMALL = 7,
       TIMEOUT = 10, VERSION = 25 };
static const struct { int code; const char *name, *text; } ERRS[] = {
  {0, "SUCCESS", "Success"}, {1, "UNINITIALIZED", "Uninitialized"},
  {2, "INVALID_ARGUMENT", "Invalid Argument"}, {3, "NOT_SUPPORTED", "Not Supported"},
  {4, "NO_PERMISSION", "Insufficient Permissions"}, {5, "ALREADY_INITIALIZED", "Already Initialized"},
  {6, "NOT_FOUND", "Not Found"}, {7, "INSUFFICIENT_SIZE", "Insufficient Size"},
  {8, "INSUFFICIENT_POWER", "Insufficient External Power"}, {9, "DRIVER_NOT_LOADED", "Driver Not Loaded"},
  {10, "TIMEOUT", "Timeout"}, {11, "IRQ_ISSUE", "Interrupt Request Issue"},
  {12, "LIBRARY_NOT_FOUND", "NVML Shared Library Not Found"}, {13, "FUNCTION_NOT_FOUND", "Function Not Found"},
  {14, "CORRUPTED_INFOROM", "Corrupted infoROM"}, {15, "GPU_IS_LOST", "GPU is lost"},
  {16, "RESET_REQUIRED", "GPU requires restart"}, {17, "OPERATING_SYSTEM", "The operating system has blocked the request."},
  {18, "LIB_RM_VERSION_MISMATCH", "RM has detected an NVML/RM version mismatch."},
  {19, "IN_USE", "In Use"}, {20, "MEMORY", "Insufficient Memory"}, {21, "NO_DATA", "No data"},
  {25, "ARGUMENT_VERSION_MISMATCH", "Argument Version Mismatch"}, {27, "NOT_READY", "Not Ready"},
  {28, "GPU_NOT_FOUND", "No GPUs found"}, {999, "UNKNOWN", "Unknown Error"}};
#define NERRS (sizeof ERRS / sizeof *ERRS)

/* name, default */
#define FIELDS(X) \
  X(mem_total, 150754820096ULL) X(mem_used, 120259084288ULL) X(mem_reserved, 643825664ULL) \
  X(bar1_total, 274877906944ULL) X(bar1_used, 1048576) \
  X(util_gpu, 87) X(util_mem, 41) X(enc, 0) X(dec, 0) X(jpg, 0) X(ofa, 0) \
  X(temp, 54) X(temp_mem, 61) X(temp_shutdown, 95) X(temp_slowdown, 92) X(temp_gpu_max, 87) \
  X(power_mw, 512340) X(energy_mj, 123456789000ULL) X(power_limit_mw, 700000) \
  X(power_default_mw, 700000) X(power_min_mw, 200000) X(power_max_mw, 700000) \
  X(clk_graphics, 1830) X(clk_sm, 1830) X(clk_mem, 3201) X(clk_video, 1545) \
  X(max_graphics, 1980) X(max_sm, 1980) X(max_mem, 3201) X(max_video, 1545) \
  X(reasons, 0x4) X(fan, 0) X(fans, 0) X(pstate, 0) X(ecc_mode, 1) \
  X(ecc_vol_corr, 2) X(ecc_vol_unc, 0) X(ecc_agg_corr, 5) X(ecc_agg_unc, 0) \
  X(pcie_tx_kbs, 1200000) X(pcie_rx_kbs, 340000) X(pcie_replay, 3) X(pcie_gen, 5) X(pcie_width, 16) \
  X(remap_corr, 0) X(remap_unc, 1) X(remap_pending, 0) X(remap_failure, 0) \
  X(nvlinks, 18) X(nvlink_tx_kib, 9000000) X(nvlink_rx_kib, 8000000) \
  X(viol_power_ns, 5000000000ULL) X(viol_thermal_ns, 0) X(recovery_action, 0) \
  X(mig_mode, 0) X(persistence, 1) X(compute_mode, 0) X(cc_major, 9) X(cc_minor, 0) X(cores, 16896)
enum {
#define X(n, d) F_##n,
  FIELDS(X)
#undef X
  NFIELDS };
static const char *const FNAME[] = {
#define X(n, d) #n,
  FIELDS(X)
#undef X
};
static const u64 FDEF[] = {
#define X(n, d) d,
  FIELDS(X)
#undef X
};

#define MAXGPU 16
#define MAXPROC 32
#define MAXMIG 8
#define MAXFAULT 128
#define MAXRAW 256
#define MAXXID 64
struct proc { u32 pid, gi, ci, sm, mem; u64 bytes; char type; };
struct mig { u32 gi, ci; u64 total, used; };
struct gpu {
  char name[96], uuid[96], serial[30];
  u64 f[NFIELDS]; char unset[NFIELDS];
  struct proc p[MAXPROC]; int np;
  struct mig m[MAXMIG]; int nm;
};
struct fault { int gpu; char fn[64]; int code; double hang; };
static struct conf {
  int gpus, cuda, pcie_ms; char driver[80], nvml[80];
  struct gpu g[MAXGPU];
  struct fault fl[MAXFAULT]; int nf;
  struct { int gpu; u32 id; u64 v; } raw[MAXRAW]; int nraw;
  struct { long seq; int gpu; u64 code; } xid[MAXXID]; int nx;
} C;

/* a handle points at one of these; mig < 0 for a whole GPU */
struct handle { int gpu, mig; };
static struct handle H[MAXGPU][MAXMIG + 1];
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static int inits;
static long last_seq;
static struct timespec t0;

static double now(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
static double start(void) { return (double)t0.tv_sec + (double)t0.tv_nsec / 1e9; }
static void nap(double s) {
  struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
  while (nanosleep(&t, &t) && errno == EINTR) ;
}
static int errcode(const char *s) {
  if (*s >= '0' && *s <= '9') return atoi(s);
  for (size_t i = 0; i < NERRS; i++) if (!strcmp(s, ERRS[i].name)) return ERRS[i].code;
  return 999;
}
static char *trim(char *s) {
  while (*s == ' ' || *s == '\t') s++;
  char *e = s + strlen(s);
  while (e > s && (e[-1] == ' ' || e[-1] == '\t' || e[-1] == '\n' || e[-1] == '\r')) *--e = 0;
  return s;
}
static void setgpu(int n, const char *k, char *v) {
  struct gpu *g = &C.g[n];
  if (!strcmp(k, "name")) { snprintf(g->name, sizeof g->name, "%s", v); return; }
  if (!strcmp(k, "uuid")) { snprintf(g->uuid, sizeof g->uuid, "%s", v); return; }
  if (!strcmp(k, "serial")) { snprintf(g->serial, sizeof g->serial, "%s", v); return; }
  if (!strcmp(k, "proc") && g->np < MAXPROC) {
    struct proc p = {0, ~0u, ~0u, 50, 20, 0, 'C'}; char b[32] = "0";
    if (sscanf(v, "%u:%31[^:]:%c:%u:%u:%u:%u", &p.pid, b, &p.type, &p.gi, &p.ci, &p.sm, &p.mem) >= 2) {
      p.bytes = b[0] == '-' ? ~0ULL : strtoull(b, 0, 0); g->p[g->np++] = p; }
    return; }
  if (!strcmp(k, "mig") && g->nm < MAXMIG) {
    struct mig m = {0};
    if (sscanf(v, "%u:%u:%llu:%llu", &m.gi, &m.ci, &m.total, &m.used) == 4) g->m[g->nm++] = m;
    return; }
  if (!strcmp(k, "unset")) {
    char b[512], *sv, *w; snprintf(b, sizeof b, "%s", v);
    for (w = strtok_r(b, " ,", &sv); w; w = strtok_r(0, " ,", &sv))
      for (int i = 0; i < NFIELDS; i++) if (!strcmp(w, FNAME[i])) g->unset[i] = 1;
    return; }
  for (int i = 0; i < NFIELDS; i++) if (!strcmp(k, FNAME[i])) { g->f[i] = strtoull(v, 0, 0); g->unset[i] = 0; return; }
  fprintf(stderr, "fake_nvml: unknown key gpu.%d.%s\n", n, k);
}
static void addfault(int gpu, const char *fn, int code, double hang) {
  if (C.nf < MAXFAULT) { struct fault *f = &C.fl[C.nf++];
    f->gpu = gpu; f->code = code; f->hang = hang; snprintf(f->fn, sizeof f->fn, "%s", fn); }
}
static void parse(char *k, char *v) {
  if (!strcmp(k, "gpus")) { C.gpus = atoi(v); if (C.gpus > MAXGPU) C.gpus = MAXGPU; }
  else if (!strcmp(k, "driver")) snprintf(C.driver, sizeof C.driver, "%s", v);
  else if (!strcmp(k, "nvml")) snprintf(C.nvml, sizeof C.nvml, "%s", v);
  else if (!strcmp(k, "cuda")) C.cuda = atoi(v);
  else if (!strcmp(k, "pcie_sample_ms")) C.pcie_ms = atoi(v);
  else if (!strncmp(k, "xid.", 4) && C.nx < MAXXID) {
    C.xid[C.nx].seq = atol(k + 4);
    if (sscanf(v, "%d:%llu", &C.xid[C.nx].gpu, &C.xid[C.nx].code) == 2) C.nx++; }
  else if (!strncmp(k, "sys.err.", 8)) addfault(-1, k + 8, errcode(v), 0);
  else if (!strncmp(k, "sys.hang.", 9)) addfault(-1, k + 9, 0, atof(v));
  else if (!strncmp(k, "gpu.", 4) || !strncmp(k, "field.", 6)) {
    int isf = k[0] == 'f'; char *n = strchr(k, '.') + 1, *s = strchr(n, '.');
    if (!s) return;
    *s++ = 0;
    int lo = *n == '*' ? 0 : atoi(n), hi = *n == '*' ? MAXGPU - 1 : lo;
    if (lo < 0 || hi >= MAXGPU) return;
    for (int i = lo; i <= hi; i++)
      if (isf) { if (C.nraw < MAXRAW) { C.raw[C.nraw].gpu = i; C.raw[C.nraw].id = (u32)atoi(s); C.raw[C.nraw++].v = strtoull(v, 0, 0); } }
      else if (!strncmp(s, "err.", 4)) addfault(i, s + 4, errcode(v), 0);
      else if (!strncmp(s, "hang.", 5)) addfault(i, s + 5, 0, atof(v));
      else setgpu(i, s, v); }
  else fprintf(stderr, "fake_nvml: unknown key %s\n", k);
}
static void load(void) { /* mu held */
  memset(&C, 0, sizeof C);
  C.gpus = 8; C.cuda = 13000; C.pcie_ms = 20;
  strcpy(C.driver, "580.159.03"); strcpy(C.nvml, "13.580.159.03");
  for (int i = 0; i < MAXGPU; i++) {
    struct gpu *g = &C.g[i];
    memcpy(g->f, FDEF, sizeof FDEF);
    strcpy(g->name, "NVIDIA H200");
    snprintf(g->uuid, sizeof g->uuid, "GPU-fa4e0000-1111-2222-3333-4444444400%02x", i);
    snprintf(g->serial, sizeof g->serial, "16534230%05d", i);
    for (int m = 0; m <= MAXMIG; m++) { H[i][m].gpu = i; H[i][m].mig = m - 1; }
  }
  const char *p = getenv("FAKE_NVML_CONF"); FILE *f = p ? fopen(p, "r") : 0;
  char line[1024];
  while (f && fgets(line, sizeof line, f)) {
    char *h = strchr(line, '#'); if (h) *h = 0;
    char *e = strchr(line, '='); if (!e) continue;
    *e = 0; parse(trim(line), trim(e + 1));
  }
  if (f) fclose(f);
}
static void refresh(void) { /* mu held; cheap: at most one stat each 20 ms */
  static double next; static struct timespec mt; static off_t sz; static int first = 1;
  struct timespec c; clock_gettime(CLOCK_MONOTONIC_COARSE, &c);
  double t = (double)c.tv_sec + (double)c.tv_nsec / 1e9;
  if (!first && t < next) return;
  next = t + 0.02;
  const char *p = getenv("FAKE_NVML_CONF"); struct stat st; memset(&st, 0, sizeof st);
  if (p) (void)!stat(p, &st);
  if (first || st.st_mtim.tv_sec != mt.tv_sec || st.st_mtim.tv_nsec != mt.tv_nsec || st.st_size != sz) {
    mt = st.st_mtim; sz = st.st_size; first = 0; load(); }
}
static int fault(int gpu, const char *fn, double *hang) { /* mu held; first error wins, hangs add */
  int code = 0;
  for (int i = 0; i < C.nf; i++)
    if (C.fl[i].gpu == gpu && (C.fl[i].fn[0] == '*' || !strcmp(C.fl[i].fn, fn))) {
      *hang += C.fl[i].hang; if (!code) code = C.fl[i].code; }
  return code;
}
/* call tracing */
struct cnt { const char *fn; unsigned long n; struct cnt *next; };
static struct cnt *cnts;
static void hit(struct cnt *c, const char *fn) { if (!c->fn) { c->fn = fn; c->next = cnts; cnts = c; } c->n++; }
__attribute__((destructor)) static void dump(void) {
  const char *p = getenv("FAKE_NVML_TRACE"); FILE *f = p ? fopen(p, "w") : 0;
  if (!f) return;
  for (struct cnt *c = cnts; c; c = c->next) fprintf(f, "%s %lu\n", c->fn, c->n);
  fclose(f);
}
/* Every function starts with one of these. The lock is dropped while a call hangs. */
#define COUNT() static struct cnt c_; hit(&c_, __func__)
#define SYS() do { pthread_mutex_lock(&mu); COUNT(); refresh(); double h_ = 0; int e_ = fault(-1, __func__, &h_); \
  int i_ = inits; pthread_mutex_unlock(&mu); if (h_ > 0) { nap(h_); } \
  if (e_) { return e_; } \
  if (!i_) { return UNINIT; } } while (0)
static struct gpu *dev(const void *d) {
  if ((const char *)d < (const char *)H || (const char *)d >= (const char *)(H + MAXGPU)) return 0;
  return &C.g[((const struct handle *)d)->gpu];
}
#define IDX(d) (((const struct handle *)(d))->gpu)
#define MIG(d) (((const struct handle *)(d))->mig)
#define DEV(d) struct gpu *g; do { pthread_mutex_lock(&mu); COUNT(); refresh(); g = dev(d); double h_ = 0; \
  int e_ = g ? fault(IDX(d), __func__, &h_) : 0; int i_ = inits; pthread_mutex_unlock(&mu); \
  if (h_ > 0) { nap(h_); } \
  if (!i_) { return UNINIT; } \
  if (!g) { return INVAL; } \
  if (e_) { return e_; } (void)g; } while (0)
#define GET(F, p) do { if (!(p)) return INVAL; if (g->unset[F_##F]) return NOTSUP; *(p) = (__typeof__(*(p)))g->f[F_##F]; return OK; } while (0)
#define NOMIG(d) do { if (MIG(d) >= 0) return NOTSUP; } while (0)
#define API __attribute__((visibility("default")))

static R put(char *b, u32 n, const char *s) {
  if (!b) return INVAL;
  if (strlen(s) + 1 > n) return TOOSMALL;
  strcpy(b, s); return OK;
}
static u64 energy(struct gpu *g) { return g->f[F_energy_mj] + (u64)((now() - start()) * (double)g->f[F_power_mw]); }

/* ---- library ---- */
API R nvmlInitWithFlags(u32 flags) {
  (void)flags; pthread_mutex_lock(&mu); COUNT(); refresh(); double h = 0; int e = fault(-1, "nvmlInit_v2", &h);
  if (!e) e = fault(-1, __func__, &h);
  if (!e && !inits++) clock_gettime(CLOCK_MONOTONIC, &t0);
  pthread_mutex_unlock(&mu);
  if (h > 0) nap(h);
  return e;
}
API R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API R nvmlInit(void) { return nvmlInitWithFlags(0); }
API R nvmlShutdown(void) { SYS(); pthread_mutex_lock(&mu); inits--; pthread_mutex_unlock(&mu); return OK; }
API const char *nvmlErrorString(R r) {
  for (size_t i = 0; i < NERRS; i++) if (ERRS[i].code == r) return ERRS[i].text;
  return "Unknown Error";
}
API R nvmlSystemGetDriverVersion(char *b, u32 n) { SYS(); return put(b, n, C.driver); }
API R nvmlSystemGetNVMLVersion(char *b, u32 n) { SYS(); return put(b, n, C.nvml); }
API R nvmlSystemGetCudaDriverVersion(int *v) { SYS(); if (!v) return INVAL; *v = C.cuda; return OK; }
API R nvmlSystemGetCudaDriverVersion_v2(int *v) { SYS(); if (!v) return INVAL; *v = C.cuda; return OK; }
API R nvmlSystemGetProcessName(u32 pid, char *b, u32 n) {
  SYS(); char p[64], s[256] = ""; snprintf(p, sizeof p, "/proc/%u/comm", pid);
  FILE *f = fopen(p, "r"); if (!f) return NOTFOUND;
  if (fgets(s, sizeof s, f)) s[strcspn(s, "\n")] = 0;
  fclose(f); return put(b, n, s);
}
/* ---- handles ---- */
API R nvmlDeviceGetCount_v2(u32 *n) { SYS(); if (!n) return INVAL; *n = (u32)C.gpus; return OK; }
API R nvmlDeviceGetCount(u32 *n) { return nvmlDeviceGetCount_v2(n); }
API R nvmlDeviceGetHandleByIndex_v2(u32 i, void **d) {
  SYS(); if (!d || i >= (u32)C.gpus) return INVAL;
  double h = 0; pthread_mutex_lock(&mu); int e = fault((int)i, __func__, &h); pthread_mutex_unlock(&mu);
  if (h > 0) nap(h);
  if (e) return e;
  *d = &H[i][0]; return OK;
}
API R nvmlDeviceGetHandleByIndex(u32 i, void **d) { return nvmlDeviceGetHandleByIndex_v2(i, d); }
static void miguuid(int i, int m, char *b, size_t n) { snprintf(b, n, "MIG-%s-%d", C.g[i].uuid + 4, m); }
API R nvmlDeviceGetHandleByUUID(const char *u, void **d) {
  SYS(); if (!u || !d) return INVAL;
  for (int i = 0; i < C.gpus; i++) {
    if (!strcmp(u, C.g[i].uuid)) { *d = &H[i][0]; return OK; }
    for (int m = 0; m < C.g[i].nm; m++) { char b[128]; miguuid(i, m, b, sizeof b); if (!strcmp(u, b)) { *d = &H[i][m + 1]; return OK; } }
  }
  return NOTFOUND;
}
struct pci { char legacy[16]; u32 domain, bus, device, id, sub; char busid[32]; };
static void pcifill(int i, struct pci *p) {
  memset(p, 0, sizeof *p); p->bus = (u32)(0x18 + 0x10 * i); p->id = 0x233510DE; p->sub = 0x18BE10DE;
  snprintf(p->legacy, sizeof p->legacy, "0000:%02X:00.0", p->bus);
  snprintf(p->busid, sizeof p->busid, "00000000:%02X:00.0", p->bus);
}
API R nvmlDeviceGetHandleByPciBusId_v2(const char *s, void **d) {
  SYS(); if (!s || !d) return INVAL;
  for (int i = 0; i < C.gpus; i++) { struct pci p; pcifill(i, &p);
    if (!strcasecmp(s, p.busid) || !strcasecmp(s, p.legacy)) { *d = &H[i][0]; return OK; } }
  return NOTFOUND;
}
/* ---- identity ---- */
API R nvmlDeviceGetName(void *d, char *b, u32 n) { DEV(d); char s[160];
  if (MIG(d) >= 0) snprintf(s, sizeof s, "%s MIG 1g.18gb", g->name); else snprintf(s, sizeof s, "%s", g->name);
  return put(b, n, s); }
API R nvmlDeviceGetUUID(void *d, char *b, u32 n) { DEV(d); if (MIG(d) < 0) return put(b, n, g->uuid);
  char u[128]; miguuid(IDX(d), MIG(d), u, sizeof u); return put(b, n, u); }
API R nvmlDeviceGetSerial(void *d, char *b, u32 n) { DEV(d); return put(b, n, g->serial); }
API R nvmlDeviceGetVbiosVersion(void *d, char *b, u32 n) { DEV(d); return put(b, n, "96.00.A5.00.01"); }
API R nvmlDeviceGetIndex(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = (u32)(MIG(d) < 0 ? IDX(d) : MIG(d)); return OK; }
API R nvmlDeviceGetMinorNumber(void *d, u32 *v) { DEV(d); NOMIG(d); if (!v) return INVAL; *v = (u32)IDX(d); return OK; }
API R nvmlDeviceGetBrand(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = 14; return OK; }
API R nvmlDeviceGetArchitecture(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = 9; return OK; }
API R nvmlDeviceGetPciInfo_v3(void *d, struct pci *p) { DEV(d); NOMIG(d); if (!p) return INVAL; pcifill(IDX(d), p); return OK; }
API R nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { DEV(d); if (!a || !b) return INVAL; *a = (int)g->f[F_cc_major]; *b = (int)g->f[F_cc_minor]; return OK; }
API R nvmlDeviceGetNumGpuCores(void *d, u32 *v) { DEV(d); GET(cores, v); }
API R nvmlDeviceGetPersistenceMode(void *d, u32 *v) { DEV(d); GET(persistence, v); }
API R nvmlDeviceGetComputeMode(void *d, u32 *v) { DEV(d); GET(compute_mode, v); }
API R nvmlDeviceGetDisplayMode(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = 0; return OK; }
API R nvmlDeviceGetDisplayActive(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = 0; return OK; }
API R nvmlDeviceGetDriverModel(void *d, u32 *a, u32 *b) { DEV(d); (void)a; (void)b; return NOTSUP; } /* Windows only */
API R nvmlDeviceGetDriverModel_v2(void *d, u32 *a, u32 *b) { DEV(d); (void)a; (void)b; return NOTSUP; }
/* ---- readings ---- */
struct mem1 { u64 total, free, used; };
struct mem2 { u32 version; u64 total, reserved, free, used; };
API R nvmlDeviceGetMemoryInfo(void *d, struct mem1 *m) {
  DEV(d); if (!m) return INVAL;
  if (g->unset[F_mem_used]) return NOTSUP;
  if (MIG(d) >= 0) { if (MIG(d) >= g->nm) return NOTFOUND; m->total = g->m[MIG(d)].total; m->used = g->m[MIG(d)].used; m->free = m->total - m->used; return OK; }
  m->total = g->f[F_mem_total]; m->used = g->f[F_mem_used] + g->f[F_mem_reserved]; m->free = m->total - m->used; return OK;
}
API R nvmlDeviceGetMemoryInfo_v2(void *d, struct mem2 *m) {
  DEV(d); if (!m) return INVAL;
  if (m->version != (u32)(sizeof *m | 2u << 24)) return VERSION;
  if (g->unset[F_mem_used]) return NOTSUP;
  if (MIG(d) >= 0) { if (MIG(d) >= g->nm) return NOTFOUND; m->total = g->m[MIG(d)].total; m->used = g->m[MIG(d)].used; m->reserved = 0; }
  else { m->total = g->f[F_mem_total]; m->used = g->f[F_mem_used]; m->reserved = g->f[F_mem_reserved]; }
  m->free = m->total - m->used - m->reserved; return OK;
}
struct bar1 { u64 total, free, used; };
API R nvmlDeviceGetBAR1MemoryInfo(void *d, struct bar1 *m) { DEV(d); NOMIG(d); if (!m) return INVAL; m->total = g->f[F_bar1_total]; m->used = g->f[F_bar1_used]; m->free = m->total - m->used; return OK; }
struct util { u32 gpu, memory; };
API R nvmlDeviceGetUtilizationRates(void *d, struct util *u) { DEV(d); if (!u) return INVAL;
  if (MIG(d) >= 0 || g->f[F_mig_mode] || g->unset[F_util_gpu]) return NOTSUP; /* as the driver does with MIG on */
  u->gpu = (u32)g->f[F_util_gpu]; u->memory = (u32)g->f[F_util_mem]; return OK; }
#define CODEC(N, F) API R N(void *d, u32 *v, u32 *us) { DEV(d); NOMIG(d); if (!v || !us) return INVAL; if (g->f[F_mig_mode]) return NOTSUP; *us = 167000; GET(F, v); }
CODEC(nvmlDeviceGetEncoderUtilization, enc)
CODEC(nvmlDeviceGetDecoderUtilization, dec)
CODEC(nvmlDeviceGetJpgUtilization, jpg)
CODEC(nvmlDeviceGetOfaUtilization, ofa)
API R nvmlDeviceGetTemperature(void *d, int sensor, u32 *v) { DEV(d); NOMIG(d); if (sensor) return INVAL; GET(temp, v); }
struct tempv { u32 version; int sensor, temp; };
API R nvmlDeviceGetTemperatureV(void *d, struct tempv *t) { DEV(d); NOMIG(d); if (!t) return INVAL;
  if (t->version != (u32)(sizeof *t | 1u << 24)) return VERSION;
  GET(temp, &t->temp); }
API R nvmlDeviceGetTemperatureThreshold(void *d, int w, u32 *v) { DEV(d); NOMIG(d);
  if (w == 0) GET(temp_shutdown, v); else if (w == 1) GET(temp_slowdown, v); else if (w == 3) GET(temp_gpu_max, v); else return NOTSUP; }
API R nvmlDeviceGetPowerUsage(void *d, u32 *v) { DEV(d); NOMIG(d); GET(power_mw, v); }
API R nvmlDeviceGetTotalEnergyConsumption(void *d, u64 *v) { DEV(d); NOMIG(d); if (!v) return INVAL; if (g->unset[F_energy_mj]) return NOTSUP; *v = energy(g); return OK; }
API R nvmlDeviceGetEnforcedPowerLimit(void *d, u32 *v) { DEV(d); NOMIG(d); GET(power_limit_mw, v); }
API R nvmlDeviceGetPowerManagementLimit(void *d, u32 *v) { DEV(d); NOMIG(d); GET(power_limit_mw, v); }
API R nvmlDeviceGetPowerManagementDefaultLimit(void *d, u32 *v) { DEV(d); NOMIG(d); GET(power_default_mw, v); }
API R nvmlDeviceGetPowerManagementLimitConstraints(void *d, u32 *lo, u32 *hi) { DEV(d); NOMIG(d); if (!lo || !hi) return INVAL; *lo = (u32)g->f[F_power_min_mw]; *hi = (u32)g->f[F_power_max_mw]; return OK; }
API R nvmlDeviceGetClockInfo(void *d, int t, u32 *v) { DEV(d); NOMIG(d);
  switch (t) { case 0: GET(clk_graphics, v); case 1: GET(clk_sm, v); case 2: GET(clk_mem, v); case 3: GET(clk_video, v); } return INVAL; }
API R nvmlDeviceGetMaxClockInfo(void *d, int t, u32 *v) { DEV(d); NOMIG(d);
  switch (t) { case 0: GET(max_graphics, v); case 1: GET(max_sm, v); case 2: GET(max_mem, v); case 3: GET(max_video, v); } return INVAL; }
API R nvmlDeviceGetCurrentClocksEventReasons(void *d, u64 *v) { DEV(d); NOMIG(d); GET(reasons, v); }
API R nvmlDeviceGetCurrentClocksThrottleReasons(void *d, u64 *v) { DEV(d); NOMIG(d); GET(reasons, v); }
API R nvmlDeviceGetSupportedClocksEventReasons(void *d, u64 *v) { DEV(d); if (!v) return INVAL; *v = 0x1ff; return OK; }
API R nvmlDeviceGetPerformanceState(void *d, int *v) { DEV(d); NOMIG(d); GET(pstate, v); }
API R nvmlDeviceGetNumFans(void *d, u32 *v) { DEV(d); NOMIG(d); GET(fans, v); }
API R nvmlDeviceGetFanSpeed(void *d, u32 *v) { DEV(d); NOMIG(d); if (!g->f[F_fans]) return NOTSUP; GET(fan, v); }
API R nvmlDeviceGetFanSpeed_v2(void *d, u32 i, u32 *v) { DEV(d); NOMIG(d); if (!g->f[F_fans]) return NOTSUP; if (i >= g->f[F_fans]) return INVAL; GET(fan, v); }
API R nvmlDeviceGetEccMode(void *d, u32 *a, u32 *b) { DEV(d); if (!a || !b) return INVAL; *b = (u32)g->f[F_ecc_mode]; GET(ecc_mode, a); }
API R nvmlDeviceGetTotalEccErrors(void *d, int type, int ctr, u64 *v) { DEV(d); NOMIG(d); if (!g->f[F_ecc_mode] || g->unset[F_ecc_mode]) return NOTSUP;
  switch (type * 2 + ctr) { case 0: GET(ecc_vol_corr, v); case 1: GET(ecc_agg_corr, v); case 2: GET(ecc_vol_unc, v); case 3: GET(ecc_agg_unc, v); } return INVAL; }
API R nvmlDeviceGetPcieThroughput(void *d, int c, u32 *v) { DEV(d); NOMIG(d); nap(C.pcie_ms / 1e3); if (c == 0) GET(pcie_tx_kbs, v); else GET(pcie_rx_kbs, v); }
API R nvmlDeviceGetPcieReplayCounter(void *d, u32 *v) { DEV(d); NOMIG(d); GET(pcie_replay, v); }
API R nvmlDeviceGetCurrPcieLinkGeneration(void *d, u32 *v) { DEV(d); NOMIG(d); GET(pcie_gen, v); }
API R nvmlDeviceGetCurrPcieLinkWidth(void *d, u32 *v) { DEV(d); NOMIG(d); GET(pcie_width, v); }
API R nvmlDeviceGetMaxPcieLinkGeneration(void *d, u32 *v) { DEV(d); NOMIG(d); GET(pcie_gen, v); }
API R nvmlDeviceGetMaxPcieLinkWidth(void *d, u32 *v) { DEV(d); NOMIG(d); GET(pcie_width, v); }
API R nvmlDeviceGetRemappedRows(void *d, u32 *a, u32 *b, u32 *c, u32 *e) { DEV(d); NOMIG(d); if (!a || !b || !c || !e) return INVAL;
  if (g->unset[F_remap_corr] || g->f[F_mig_mode]) return NOTSUP;
  *a = (u32)g->f[F_remap_corr]; *b = (u32)g->f[F_remap_unc]; *c = (u32)g->f[F_remap_pending]; *e = (u32)g->f[F_remap_failure]; return OK; }
struct viol { u64 ref, t; };
API R nvmlDeviceGetViolationStatus(void *d, int p, struct viol *v) { DEV(d); NOMIG(d); if (!v) return INVAL; v->ref = (u64)(now() * 1e6); v->t = p == 0 ? g->f[F_viol_power_ns] : p == 1 ? g->f[F_viol_thermal_ns] : 0; return OK; }
API R nvmlDeviceGetNvLinkState(void *d, u32 l, u32 *v) { DEV(d); NOMIG(d); if (!v) return INVAL; if (g->unset[F_nvlinks] || !g->f[F_nvlinks]) return NOTSUP; if (l >= g->f[F_nvlinks]) return INVAL; *v = 1; return OK; }
/* field values: struct and value types as in nvml.h */
struct fv { u32 id, scope; int64_t ts, lat; u32 type; R ret; union { double d; u32 ui; u64 ull; } v; };
enum { T_UINT = 1, T_ULL = 3 };
static R field(struct gpu *g, int idx, struct fv *f) {
  for (int i = 0; i < C.nraw; i++) if (C.raw[i].gpu == idx && C.raw[i].id == f->id) { f->type = T_ULL; f->v.ull = C.raw[i].v; return OK; }
  f->v.ull = 0;
#define U(ID, F) case ID: if (g->unset[F_##F]) return NOTSUP; f->type = T_UINT; f->v.ui = (u32)g->f[F_##F]; return OK;
#define L(ID, F) case ID: if (g->unset[F_##F]) return NOTSUP; f->type = T_ULL; f->v.ull = g->f[F_##F]; return OK;
  double up = now() - start();
  if (g->f[F_mig_mode] && f->id >= 142 && f->id <= 145) return NOTSUP;
  switch (f->id) {
    U(1, ecc_mode) L(3, ecc_vol_corr) L(4, ecc_vol_unc) L(5, ecc_agg_corr) L(6, ecc_agg_unc)
    L(74, viol_power_ns) L(75, viol_thermal_ns) L(269, viol_thermal_ns) L(270, viol_thermal_ns)
    U(82, temp_mem) U(91, nvlinks) U(94, pcie_replay) U(142, remap_corr) U(143, remap_unc)
    U(144, remap_pending) U(145, remap_failure) U(185, power_mw) U(186, power_mw) U(187, power_min_mw)
    U(188, power_max_mw) U(189, power_default_mw) U(190, power_limit_mw) U(230, recovery_action)
    case 83: case 191: if (g->unset[F_energy_mj]) return NOTSUP; f->type = T_ULL; f->v.ull = energy(g); return OK;
    case 138: case 140: case 139: case 141: {
      if (g->unset[F_nvlinks] || !g->f[F_nvlinks]) return NOTSUP;
      if (f->scope != ~0u && f->scope >= g->f[F_nvlinks]) return INVAL;
      u64 k = (f->id == 138 || f->id == 140) ? g->f[F_nvlink_tx_kib] : g->f[F_nvlink_rx_kib];
      f->type = T_ULL; f->v.ull = (u64)(up * (double)k) * (f->scope == ~0u ? g->f[F_nvlinks] : 1); return OK; }
    case 197: if (g->unset[F_pcie_tx_kbs]) return NOTSUP; f->type = T_ULL; f->v.ull = (u64)(up * 1e3 * (double)g->f[F_pcie_tx_kbs]); return OK;
    case 198: if (g->unset[F_pcie_rx_kbs]) return NOTSUP; f->type = T_ULL; f->v.ull = (u64)(up * 1e3 * (double)g->f[F_pcie_rx_kbs]); return OK;
  }
  return NOTSUP;
}
API R nvmlDeviceGetFieldValues(void *d, int n, struct fv *f) {
  DEV(d); if (!f || n <= 0) return INVAL;
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
  for (int i = 0; i < n; i++) {
    f[i].ts = t.tv_sec * 1000000LL + t.tv_nsec / 1000; f[i].lat = 1; f[i].type = T_UINT;
    char fn[32]; snprintf(fn, sizeof fn, "field.%u", f[i].id); double h = 0;
    int e = C.nf ? fault(IDX(d), fn, &h) : 0;
    if (h > 0) nap(h);
    f[i].ret = e ? e : MIG(d) >= 0 ? NOTSUP : field(g, IDX(d), &f[i]); }
  return OK;
}
/* ---- processes ---- */
struct pinfo { u32 pid; u64 mem; u32 gi, ci; };
static R procs(struct gpu *g, void *d, char type, u32 *n, struct pinfo *p) {
  if (!n) return INVAL;
  u32 k = 0, cap = *n;
  for (int i = 0; i < g->np; i++) if (g->p[i].type == type && (MIG(d) < 0 || (MIG(d) < g->nm && g->p[i].gi == g->m[MIG(d)].gi))) {
    if (p && k < cap) { p[k].pid = g->p[i].pid; p[k].mem = g->p[i].bytes; p[k].gi = g->p[i].gi; p[k].ci = g->p[i].ci; }
    k++; }
  *n = k; return k > cap ? TOOSMALL : OK;
}
API R nvmlDeviceGetComputeRunningProcesses_v3(void *d, u32 *n, struct pinfo *p) { DEV(d); return procs(g, d, 'C', n, p); }
API R nvmlDeviceGetComputeRunningProcesses_v2(void *d, u32 *n, struct pinfo *p) { DEV(d); return procs(g, d, 'C', n, p); }
API R nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, u32 *n, struct pinfo *p) { DEV(d); return procs(g, d, 'G', n, p); }
API R nvmlDeviceGetGraphicsRunningProcesses_v2(void *d, u32 *n, struct pinfo *p) { DEV(d); return procs(g, d, 'G', n, p); }
API R nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, u32 *n, struct pinfo *p) { DEV(d); return procs(g, d, 'M', n, p); }
struct psample { u32 pid; u64 ts; u32 sm, mem, enc, dec; };
API R nvmlDeviceGetProcessUtilization(void *d, struct psample *s, u32 *n, u64 since) {
  DEV(d); NOMIG(d); (void)since; if (!n) return INVAL;
  if (g->f[F_mig_mode]) return NOTSUP;
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t); u64 us = (u64)t.tv_sec * 1000000ULL + (u64)t.tv_nsec / 1000;
  if (!g->np) return NOTFOUND;
  if (!s || *n < (u32)g->np) { *n = (u32)g->np; return TOOSMALL; }
  for (int i = 0; i < g->np; i++) { s[i].pid = g->p[i].pid; s[i].ts = us; s[i].sm = g->p[i].sm; s[i].mem = g->p[i].mem; s[i].enc = s[i].dec = 0; }
  *n = (u32)g->np; return OK;
}
/* ---- MIG ---- */
API R nvmlDeviceGetMigMode(void *d, u32 *a, u32 *b) { DEV(d); if (!a || !b) return INVAL; *b = (u32)g->f[F_mig_mode]; GET(mig_mode, a); }
API R nvmlDeviceIsMigDeviceHandle(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = MIG(d) >= 0; return OK; }
API R nvmlDeviceGetMaxMigDeviceCount(void *d, u32 *v) { DEV(d); if (!v) return INVAL; *v = g->unset[F_mig_mode] ? 0 : 7; return OK; }
API R nvmlDeviceGetMigDeviceHandleByIndex(void *d, u32 i, void **o) { DEV(d); if (!o) return INVAL; if (i >= (u32)g->nm) return NOTFOUND; *o = &H[IDX(d)][i + 1]; return OK; }
API R nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *d, void **o) { DEV(d); if (!o || MIG(d) < 0) return INVAL; *o = &H[IDX(d)][0]; return OK; }
API R nvmlDeviceGetGpuInstanceId(void *d, u32 *v) { DEV(d); if (!v || MIG(d) < 0 || MIG(d) >= g->nm) return INVAL; *v = g->m[MIG(d)].gi; return OK; }
API R nvmlDeviceGetComputeInstanceId(void *d, u32 *v) { DEV(d); if (!v || MIG(d) < 0 || MIG(d) >= g->nm) return INVAL; *v = g->m[MIG(d)].ci; return OK; }
struct attrs { u32 sm, copy, dec, enc, jpg, ofa, gslice, cslice; u64 mib; };
API R nvmlDeviceGetAttributes_v2(void *d, struct attrs *a) { DEV(d); if (!a || MIG(d) < 0 || MIG(d) >= g->nm) return INVAL;
  memset(a, 0, sizeof *a); a->sm = 16; a->copy = 1; a->gslice = 1; a->cslice = 1; a->mib = g->m[MIG(d)].total >> 20; return OK; }
/* ---- events ---- */
struct event { void *dev; u64 type, data; u32 gi, ci; };
API R nvmlDeviceGetSupportedEventTypes(void *d, u64 *v) { DEV(d); if (!v) return INVAL; *v = 0x9f; return OK; }
API R nvmlEventSetCreate(void **s) { SYS(); if (!s) return INVAL; *s = calloc(1, 64); return OK; }
API R nvmlDeviceRegisterEvents(void *d, u64 t, void *s) { DEV(d); (void)t; return s ? OK : INVAL; }
API R nvmlEventSetWait_v2(void *s, struct event *e, u32 ms) {
  SYS(); if (!s || !e) return INVAL;
  double end = now() + ms / 1e3;
  for (;;) {
    pthread_mutex_lock(&mu); refresh(); int b = -1;
    for (int i = 0; i < C.nx; i++) if (C.xid[i].seq > last_seq && (b < 0 || C.xid[i].seq < C.xid[b].seq)) b = i;
    if (b >= 0) { last_seq = C.xid[b].seq; memset(e, 0, sizeof *e); e->dev = &H[C.xid[b].gpu][0]; e->type = 8;
      e->data = C.xid[b].code; e->gi = e->ci = ~0u; pthread_mutex_unlock(&mu); return OK; }
    pthread_mutex_unlock(&mu);
    double left = end - now(); if (left <= 0) return TIMEOUT;
    nap(left < 0.1 ? left : 0.1);
  }
}
API R nvmlEventSetWait(void *s, struct event *e, u32 ms) { return nvmlEventSetWait_v2(s, e, ms); }
API R nvmlEventSetFree(void *s) { SYS(); free(s); return OK; }
