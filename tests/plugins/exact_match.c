/* A metric in C: whether the prediction equals a reference.
 *
 *   cc -shared -fPIC -I plugins/abi/include -o libexact_match_c.so exact_match.c
 *
 * It needs the header and the C library only. It reads the host's JSON with a small scanner: texts are compared as
 * they are written there, which is exact because one writer wrote both.
 */
#include "e2llm_plugin.h"

#include <stdio.h>
#include <string.h>

#define TEXT(s) {(const uint8_t *)(s), sizeof(s) - 1}

__attribute__((used, section(".e2llm_plugin"))) static const char identity[] =
    "{\"id\":\"exact-match-c\",\"kind\":\"metric\",\"version\":\"1.0.0\",\"abi_major\":1,\"abi_minor\":0,"
    "\"target\":\"any\",\"description\":\"Exact match, written in C\",\"provides\":\"exact_match_c\"}";

static const char INFO[] =
    "{\"id\":\"exact-match-c\",\"version\":\"1\",\"description\":\"Exact match, written in C\",\"values\":[{"
    "\"id\":\"exact_match_c\",\"description\":\"the prediction is a reference\",\"unit\":\"proportion\","
    "\"higher_is_better\":true,\"aggregation\":\"mean\",\"reference\":\"this file\"}],"
    "\"gold\":{\"prediction\":\"the right answer\",\"references\":[\"a wrong one\",\"the right answer\"]}}";

/* ---- reading JSON: every function returns the place behind what it read, or NULL where it is something else ---- */

static const char *blank(const char *p) {
  while (p && *p && strchr(" \t\r\n", *p)) p++;
  return p;
}

static const char *expect(const char *p, char c) {
  p = blank(p);
  return p && *p == c ? p + 1 : NULL;
}

/* A text; [*begin, *end) is what stands between its quotes. */
static const char *text(const char *p, const char **begin, const char **end) {
  p = *begin = expect(p, '"');
  while (p && *p && *p != '"') p += p[0] == '\\' && p[1] ? 2 : 1;
  *end = p;
  return p && *p == '"' ? p + 1 : NULL;
}

/* Any value, passed over. Inside a text no bracket counts. */
static const char *value(const char *p) {
  const char *begin, *end;
  int depth = 0;
  do {
    p = blank(p);
    if (!p || !*p) return NULL;
    if (*p == '"') {
      p = text(p, &begin, &end);
    } else if (*p == '{' || *p == '[') {
      depth++, p++;
    } else if (*p == '}' || *p == ']') {
      depth--, p++;
    } else if (*p == ',' || *p == ':') {
      p++;
    } else {
      p += strcspn(p, ",:{}[] \t\r\n\"");
    }
  } while (p && depth > 0);
  return p;
}

/* The value of a key of an object. */
static const char *field(const char *p, const char *key) {
  const char *begin, *end;
  p = expect(p, '{');
  while (p && (p = text(p, &begin, &end)) && (p = expect(p, ':'))) {
    if ((size_t)(end - begin) == strlen(key) && !memcmp(begin, key, end - begin)) return blank(p);
    p = expect(value(p), ',');
  }
  return NULL;
}

/* ---- the metric ---- */

static void release(E2Buf *buf) {
  free(buf->ptr);
  memset(buf, 0, sizeof *buf);
}

static void reply(E2Buf *out, const char *json) {
  out->len = strlen(json);
  out->cap = out->len + 1;
  out->ptr = malloc(out->cap);
  out->free = release;
  if (out->ptr) memcpy(out->ptr, json, out->cap);
  else out->len = 0;
}

static int32_t fail(E2Buf *out, int32_t status, const char *message) {
  char json[256];
  snprintf(json, sizeof json, "{\"code\":\"bad_request\",\"message\":\"%s\",\"help\":\"\"}", message);
  reply(out, json);
  return status;
}

static int32_t answer(E2Buf *out, double x) {
  char json[64];
  snprintf(json, sizeof json, "{\"exact_match_c\":%.17g}", x);
  reply(out, json);
  return E2_OK;
}

static int32_t score(const char *request, E2Buf *out) {
  const char *p = field(request, "prediction"), *begin, *end, *b, *e;
  if (!text(p, &begin, &end)) return fail(out, E2_BAD_REQUEST, "the sample has no prediction");
  p = expect(field(request, "references"), '[');
  if (!p || *blank(p) == ']') return fail(out, E2_BAD_REQUEST, "the sample has no references");
  int equal = 0;
  do {
    p = text(p, &b, &e);
    if (!p) return fail(out, E2_BAD_REQUEST, "a reference is no text");
    equal |= e - b == end - begin && !memcmp(b, begin, e - b);
    p = blank(p);
  } while (*p++ == ',');
  return answer(out, equal);
}

/* The mean; a row without a value is a sample that failed and counts as 0. */
static int32_t aggregate(const char *request, E2Buf *out) {
  const char *p = expect(field(request, "rows"), '['), *x;
  double sum = 0, n = 0;
  if (!p) return fail(out, E2_BAD_REQUEST, "there are no rows");
  for (p = blank(p); *p == '{'; p = blank(p)) {
    x = field(field(p, "scores"), "exact_match_c");
    sum += x ? strtod(x, NULL) : 0;
    n += 1;
    p = blank(value(p));
    if (!p) return fail(out, E2_BAD_REQUEST, "the rows end early");
    if (*p == ',') p++;
  }
  return answer(out, n > 0 ? sum / n : 0);
}

static int32_t create(const E2Host *host, E2Str config, void **instance, E2Buf *error) {
  (void)host, (void)config, (void)error;
  *instance = (void *)INFO; /* there is no state: any pointer but null will do */
  return E2_OK;
}

static int is(E2Str method, const char *name) {
  return method.len == strlen(name) && !memcmp(method.ptr, name, method.len);
}

static int32_t call(void *instance, E2Str method, E2Str request, E2Buf *out) {
  (void)instance;
  if (is(method, "info")) {
    reply(out, INFO);
    return E2_OK;
  }
  if (!is(method, "score") && !is(method, "aggregate")) return fail(out, E2_NOT_IMPLEMENTED, "no such method");
  char *json = malloc(request.len + 1); /* the host's text has no NUL at its end */
  if (!json) return fail(out, E2_PLUGIN_ERROR, "out of memory");
  memcpy(json, request.ptr, request.len);
  json[request.len] = 0;
  int32_t status = is(method, "score") ? score(json, out) : aggregate(json, out);
  free(json);
  return status;
}

static void destroy(void *instance) { (void)instance; }

static const E2Plugin plugin = {
    .magic = {'E', '2', 'L', 'L', 'M', 'P', 'L', 'G'},
    .struct_size = sizeof(E2Plugin),
    .abi_major = E2_ABI_MAJOR,
    .abi_minor = E2_ABI_MINOR,
    .kind = E2_KIND_METRIC,
    .flags = E2_FLAG_REENTRANT | E2_FLAG_DETERMINISTIC,
    .id = TEXT("exact-match-c"),
    .version = TEXT("1.0.0"),
    .description = TEXT("Exact match, written in C"),
    .sdk = TEXT("none"),
    .target = TEXT("any"),
    .create = create,
    .call = call,
    .destroy = destroy,
};

const E2Plugin *e2llm_plugin_entry(void) { return &plugin; }
