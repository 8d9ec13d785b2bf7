/* A metric plugin that keeps the contract, or breaks it in the one way that VARIANT names.
 *
 *   cc -shared -fPIC -I plugins/abi/include -DVARIANT=GOOD -DID='"stress"' -DIDENTITY='"{...}"' stress.c
 *
 * IDENTITY is the text of the identity section; without it there is no such section. -De2llm_plugin_entry=other
 * leaves the entry function out.
 */
#include "e2llm_plugin.h"

#include <string.h>

enum {
  GOOD,
  /* the descriptor */
  NULL_DESCRIPTOR, WRONG_MAGIC, WRONG_MAJOR, NEWER_MINOR, SHORT_STRUCT, WRONG_KIND, OTHER_KIND, NULL_FUNCTION, NULL_ID,
  EMPTY_VERSION, NOT_UTF8_ID, UNRESOLVED_SYMBOL,
  /* create */
  CREATE_FAILS, CREATE_FAILS_SILENTLY, CREATE_WITHOUT_INSTANCE,
  /* a reply to `info` */
  INFO_NOT_JSON,
  /* a reply to `score` */
  NULL_WITH_LENGTH, LENGTH_OVER_CAPACITY, OVERSIZE, NO_FREE, NOT_UTF8, NOT_JSON, WRONG_SCHEMA, EMPTY_REPLY,
  FAILS, FAILS_SILENTLY, FAILS_IN_PLAIN_TEXT, UNKNOWN_STATUS, ENDS_A_STREAM,
  V = VARIANT
};

#ifdef IDENTITY
__attribute__((used, section(".e2llm_plugin"))) static const char identity[] = IDENTITY;
#endif

#define STR(s) {(const uint8_t *)(s), sizeof(s) - 1}

static const char INFO[] =
    "{\"id\":\"" ID "\",\"version\":\"1\",\"description\":\"for tests\",\"values\":[{\"id\":\"stress_value\","
    "\"description\":\"always 1\",\"unit\":\"proportion\",\"higher_is_better\":true,\"aggregation\":\"mean\","
    "\"reference\":\"none\"}],\"gold\":{\"prediction\":\"a\",\"references\":[\"a\"]}}";

static void release(E2Buf *buf) {
  free(buf->ptr);
  memset(buf, 0, sizeof *buf);
}

static void give(E2Buf *out, const char *text) {
  size_t n = strlen(text);
  out->ptr = malloc(n + 1);
  memcpy(out->ptr, text, n);
  out->len = n;
  out->cap = n + 1;
  out->free = release;
}

static int is(E2Str method, const char *name) {
  return method.len == strlen(name) && memcmp(method.ptr, name, method.len) == 0;
}

static int32_t create(const E2Host *host, E2Str config, void **instance, E2Buf *error) {
  (void)host, (void)config;
  if (V == CREATE_FAILS) {
    give(error, "{\"code\":\"plugin\",\"message\":\"no stress today\",\"help\":\"come back tomorrow\"}");
    return E2_PLUGIN_ERROR;
  }
  if (V == CREATE_FAILS_SILENTLY) return E2_PLUGIN_ERROR;
  *instance = V == CREATE_WITHOUT_INSTANCE ? NULL : (void *)&INFO;
  return E2_OK;
}

static int32_t score(E2Buf *out) {
  give(out, "{\"stress_value\":1.0}");
  switch (V) {
    case NULL_WITH_LENGTH:
      release(out);
      out->len = out->cap = 7;
      out->free = release;
      break;
    case LENGTH_OVER_CAPACITY: out->len = out->cap + 1; break;
    case OVERSIZE: out->len = out->cap = (size_t)E2_MAX_PAYLOAD + 1; break;
    case NO_FREE: out->free = NULL; break;
    case NOT_UTF8: out->ptr[3] = 0xff; break;
    case NOT_JSON: out->ptr[0] = '<'; break;
    case WRONG_SCHEMA: release(out), give(out, "{\"stress_value\":\"high\"}"); break;
    case EMPTY_REPLY: release(out); break;
    case FAILS:
      release(out), give(out, "{\"code\":\"plugin\",\"message\":\"too much stress\",\"help\":\"breathe\"}");
      return E2_PLUGIN_ERROR;
    case FAILS_SILENTLY: release(out); return E2_PLUGIN_ERROR;
    case FAILS_IN_PLAIN_TEXT: release(out), give(out, "out of paper"); return E2_IO;
    case UNKNOWN_STATUS: release(out); return 99;
    case ENDS_A_STREAM: release(out); return E2_END;
    default: break;
  }
  return E2_OK;
}

static int32_t call(void *instance, E2Str method, E2Str request, E2Buf *out) {
  (void)instance, (void)request;
  if (is(method, "info")) {
    give(out, V == INFO_NOT_JSON ? "hello" : INFO);
    return E2_OK;
  }
  if (is(method, "score")) return score(out);
  if (is(method, "aggregate")) {
    give(out, "{\"stress_value\":1.0}");
    return E2_OK;
  }
  return E2_NOT_IMPLEMENTED;
}

static void destroy(void *instance) { (void)instance; }

/* What a later minor version has and this one does not know. */
static const struct {
  E2Plugin plugin;
  uint8_t later_fields[64];
} descriptor = {
    {
        .magic = {V == WRONG_MAGIC ? 'X' : 'E', '2', 'L', 'L', 'M', 'P', 'L', 'G'},
        .struct_size = V == SHORT_STRUCT ? 64 : V == NEWER_MINOR ? sizeof descriptor : sizeof(E2Plugin),
        .abi_major = V == WRONG_MAJOR ? E2_ABI_MAJOR + 1 : E2_ABI_MAJOR,
        .abi_minor = V == NEWER_MINOR ? E2_ABI_MINOR + 3 : E2_ABI_MINOR,
        .kind = V == WRONG_KIND ? 9 : V == OTHER_KIND ? E2_KIND_TASK : E2_KIND_METRIC,
        .flags = E2_FLAG_DETERMINISTIC,
        .id = {V == NULL_ID ? NULL : (const uint8_t *)(V == NOT_UTF8_ID ? "\xff\xfe" ID : ID), sizeof(ID) - 1},
        .version = {(const uint8_t *)"1.0.0", V == EMPTY_VERSION ? 0 : 5},
        .description = STR("for tests"),
        .sdk = STR("none"),
        .target = STR("any"),
        .create = V == NULL_FUNCTION ? NULL : create,
        .call = call,
        .destroy = destroy,
    },
    {0},
};

extern const E2Plugin *nobody_defines_this(void);

const E2Plugin *e2llm_plugin_entry(void) {
  if (V == UNRESOLVED_SYMBOL) return nobody_defines_this();
  return V == NULL_DESCRIPTOR ? NULL : &descriptor.plugin;
}
