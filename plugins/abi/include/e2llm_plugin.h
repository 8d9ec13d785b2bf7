#ifndef E2LLM_PLUGIN_H
#define E2LLM_PLUGIN_H

/* Generated from plugins/abi/src/lib.rs; do not edit. Regenerate: E2LLM_UPDATE=1 cargo test -p e2llm-plugin-abi */

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* A plugin exports exactly this function. */
struct E2Plugin;
#ifdef __cplusplus
extern "C" {
#endif
const struct E2Plugin *e2llm_plugin_entry(void);
#ifdef __cplusplus
}
#endif


// Major version: equal on both sides, or the library is refused.
#define E2_ABI_MAJOR 1

// Minor version: grows when a struct grows or a method is added.
#define E2_ABI_MINOR 0

// Largest payload in bytes that either side accepts.
#define E2_MAX_PAYLOAD (256 << 20)

// [`E2Plugin::kind`]: a benchmark.
#define E2_KIND_TASK 1

// [`E2Plugin::kind`]: a metric family.
#define E2_KIND_METRIC 2

// [`E2Plugin::flags`]: one instance may be called from several threads at once.
#define E2_FLAG_REENTRANT 1

// [`E2Plugin::flags`]: equal requests get equal replies.
#define E2_FLAG_DETERMINISTIC 2

// Done.
#define E2_OK 0

// The stream has no more examples; the reply holds none.
#define E2_END 1

// The request is unusable.
#define E2_BAD_REQUEST 2

// The plugin has no such method.
#define E2_NOT_IMPLEMENTED 3

// A file could not be read.
#define E2_IO 4

// The host asked to stop.
#define E2_CANCELLED 5

// The plugin failed.
#define E2_PLUGIN_ERROR 6

// The plugin panicked; the instance must not be called again, only destroyed.
#define E2_PANICKED 7

// Borrowed UTF-8 bytes, not NUL-terminated; valid for the call, or for ever inside a static [`E2Plugin`].
typedef struct E2Str {
  // First byte; may be null where `len` is 0.
  const uint8_t *ptr;
  // Bytes.
  size_t len;
} E2Str;

// An owned buffer, freed by the side that made it.
typedef struct E2Buf {
  // First byte; may be null where `len` is 0.
  uint8_t *ptr;
  // Bytes in use.
  size_t len;
  // Bytes allocated, at least `len`.
  size_t cap;
  // Frees the memory; must be present where `ptr` is not null.
  void (*free)(struct E2Buf *buf);
} E2Buf;

// What a plugin may ask of the host; valid as long as the instance it was given to.
typedef struct E2Host {
  // Bytes of this struct on the host's side.
  uint32_t struct_size;
  // The host's [`E2_ABI_MAJOR`].
  uint16_t abi_major;
  // The host's [`E2_ABI_MINOR`].
  uint16_t abi_minor;
  // Logs a message; level 1 error, 2 warning, 3 information, 4 debug, 5 trace. Any thread.
  void (*log)(int level, struct E2Str target, struct E2Str message);
  // Whether the user asked to stop: 0 or 1. Any thread.
  int (*is_cancelled)(void);
  // Tokens of `text` by the tokenizer of the backend under test; [`E2_NOT_IMPLEMENTED`] where it has none.
  int (*count_tokens)(struct E2Str text, uint64_t *n);
  // An extension of the host by its name, null where it has none.
  const void *(*extension)(struct E2Str id);
} E2Host;

// A plugin: a static of the library, never changed, shared by all threads.
typedef struct E2Plugin {
  // [`E2_MAGIC`].
  uint8_t magic[8];
  // Bytes of this struct on the plugin's side.
  uint32_t struct_size;
  // The [`E2_ABI_MAJOR`] it was built with.
  uint16_t abi_major;
  // The [`E2_ABI_MINOR`] it was built with.
  uint16_t abi_minor;
  // [`E2_KIND_TASK`] or [`E2_KIND_METRIC`].
  uint32_t kind;
  // Sum of `E2_FLAG_*`.
  uint64_t flags;
  // Unique name within its kind, e.g. `qmsum`.
  struct E2Str id;
  // The plugin's own version, e.g. `0.1.0`.
  struct E2Str version;
  // One line for listings.
  struct E2Str description;
  // Name and version of the SDK, or of the compiler, it was built with.
  struct E2Str sdk;
  // Target triple it was built for.
  struct E2Str target;
  // Makes an instance from a JSON object of options. On failure `error_json` holds `{code, message, help}`.
  int32_t (*create)(const struct E2Host *host,
                    struct E2Str config_json,
                    void **instance,
                    struct E2Buf *error_json);
  // Calls a method with a JSON request. The reply is the method's, or on failure `{code, message, help}`.
  int32_t (*call)(void *instance, struct E2Str method, struct E2Str request_json, struct E2Buf *reply_json);
  // Ends an instance; it is not used after.
  void (*destroy)(void *instance);
} E2Plugin;

#endif  /* E2LLM_PLUGIN_H */
