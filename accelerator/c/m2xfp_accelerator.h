/* Driver of the M2XFP accelerator in C99, in this header alone: registers, descriptors, a queue.
 *
 * It allocates nothing and copies nothing. The caller says how registers are reached (m2xfp_bus; a
 * pointer to them on a board: m2xfp_mmio), and where matrices are on the accelerator's buses.
 * accelerator-registers.h is made by `m2xfp registers`, docs/accelerator-unit.md tells the rest.
 *
 * One thread at a time uses a device.
 */

#ifndef M2XFP_ACCELERATOR_H
#define M2XFP_ACCELERATOR_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__cplusplus) && (!defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L)
#ifndef static_assert /* C99 has none, and the header of the registers uses it */
#define static_assert(condition, text) typedef char m2xfp_assertion[(condition) ? 1 : -1]
#endif
#endif
#include "accelerator-registers.h"

#define M2XFP_ID UINT32_C(0x4D325846)
#define M2XFP_VERSION UINT32_C(2)

/* What calls return besides 0, all is well, and causes of errors, 1 to 255 (register error). */
enum {
    M2XFP_NO_DEVICE = -1,  /* what answers is no accelerator of this version */
    M2XFP_NO_FEATURE = -2, /* this accelerator was built without it */
    M2XFP_TOO_LARGE = -3   /* k is larger than max_k */
};

enum m2xfp_operation { M2XFP_GEMM = 1, M2XFP_QUANTIZE = 2, M2XFP_ENCODE = 3 };
enum m2xfp_kind { M2XFP_FP32 = 0, M2XFP_BF16 = 1, M2XFP_PACKED = 2 };

/* How registers are reached. */
typedef struct {
    void *context;
    uint32_t (*read)(void *context, uint32_t offset);
    void (*write)(void *context, uint32_t offset, uint32_t word);
    void (*wait)(void *context); /* let time pass until an interrupt, or for a while; or NULL */
} m2xfp_bus;

/* A packed matrix: where its planes are, and the bytes from a row to the next. */
typedef struct {
    uint64_t codes, scales, meta;
    uint32_t codes_pitch, scales_pitch;
} m2xfp_matrix;

/* A matrix of values. */
typedef struct {
    uint64_t address;
    uint32_t pitch;
    enum m2xfp_kind kind;
} m2xfp_values;

typedef struct {
    m2xfp_bus bus;
    uint32_t max_k, group, depth, features;
    uint32_t pushed, completed; /* descriptors, modulo 2^32 */
    int cause;                  /* of the first error since m2xfp_clear, or 0 */
    uint32_t failed;            /* its descriptor, modulo 2^16 */
} m2xfp_device;

#define M2XFP_OFFSET(name) ((uint32_t)offsetof(accelerator_t, name))
#define M2XFP_FIELD(word, name) (((word) & ACCELERATOR__##name##_bm) >> ACCELERATOR__##name##_bp)

static inline uint32_t m2xfp_read(const m2xfp_device *device, uint32_t offset)
{
    return device->bus.read(device->bus.context, offset);
}

static inline void m2xfp_write(const m2xfp_device *device, uint32_t offset, uint32_t word)
{
    device->bus.write(device->bus.context, offset, word);
}

static inline uint32_t m2xfp_mmio_read(void *context, uint32_t offset)
{
    return ((volatile uint32_t *)context)[offset / 4];
}

static inline void m2xfp_mmio_write(void *context, uint32_t offset, uint32_t word)
{
    ((volatile uint32_t *)context)[offset / 4] = word;
}

/* Registers that are mapped into this program. */
static inline m2xfp_bus m2xfp_mmio(void *registers)
{
    m2xfp_bus bus;
    bus.context = registers;
    bus.read = m2xfp_mmio_read;
    bus.write = m2xfp_mmio_write;
    bus.wait = NULL;
    return bus;
}

/* Begin to use an accelerator; timeout: clocks without movement that end a descriptor, 0 none. */
static inline int m2xfp_open(m2xfp_device *device, m2xfp_bus bus, uint32_t timeout)
{
    uint32_t limits, queue;
    device->bus = bus;
    if (m2xfp_read(device, M2XFP_OFFSET(id)) != M2XFP_ID
        || m2xfp_read(device, M2XFP_OFFSET(version)) != M2XFP_VERSION)
        return M2XFP_NO_DEVICE;
    limits = m2xfp_read(device, M2XFP_OFFSET(limits));
    queue = m2xfp_read(device, M2XFP_OFFSET(bus));
    device->max_k = M2XFP_FIELD(limits, LIMITS__MAX_K);
    device->group = M2XFP_FIELD(limits, LIMITS__GROUP);
    device->depth = M2XFP_FIELD(queue, BUS__DEPTH);
    device->features = m2xfp_read(device, M2XFP_OFFSET(features));
    device->pushed = device->completed = m2xfp_read(device, M2XFP_OFFSET(completed));
    device->cause = 0;
    device->failed = 0;
    m2xfp_write(device, M2XFP_OFFSET(timeout), timeout);
    m2xfp_write(device, M2XFP_OFFSET(error), ACCELERATOR__ERROR__VALID_bm);
    m2xfp_write(device, M2XFP_OFFSET(int_status), 3);
    m2xfp_write(device, M2XFP_OFFSET(int_enable), ACCELERATOR__INT_ENABLE__DONE_bm);
    return 0;
}

/* Note what has ended, and the first error. */
static inline void m2xfp_look(m2xfp_device *device)
{
    uint32_t error;
    m2xfp_write(device, M2XFP_OFFSET(int_status), 3);
    device->completed = m2xfp_read(device, M2XFP_OFFSET(completed));
    error = m2xfp_read(device, M2XFP_OFFSET(error));
    if (device->cause == 0 && (error & ACCELERATOR__ERROR__VALID_bm)) {
        device->cause = (int)M2XFP_FIELD(error, ERROR__CAUSE);
        device->failed = M2XFP_FIELD(error, ERROR__DESCRIPTOR);
    }
}

/* Wait until the descriptors up to one have ended: `last` is a value of device->pushed.
 * Return 0, or the cause of the first error since m2xfp_clear; device->failed is its number. */
static inline int m2xfp_wait(m2xfp_device *device, uint32_t last)
{
    for (;;) {
        m2xfp_look(device);
        if ((int32_t)(device->completed - last) >= 0)
            return device->cause;
        if (device->bus.wait)
            device->bus.wait(device->bus.context);
    }
}

/* Forget an error, when all has ended. */
static inline void m2xfp_clear(m2xfp_device *device)
{
    m2xfp_write(device, M2XFP_OFFSET(error), ACCELERATOR__ERROR__VALID_bm);
    device->cause = 0;
}

static inline void m2xfp_put(const m2xfp_device *device, uint32_t offset, uint64_t address)
{
    m2xfp_write(device, offset, (uint32_t)address);
    m2xfp_write(device, offset + 4, (uint32_t)(address >> 32));
}

static inline void m2xfp_push(m2xfp_device *device)
{
    ++device->pushed;
    m2xfp_write(device, M2XFP_OFFSET(push), device->pushed & 0xFFFF);
}

/* Wait for room in the queue; errors stay for m2xfp_wait. */
static inline void m2xfp_room(m2xfp_device *device)
{
    if (device->pushed - device->completed >= device->depth)
        (void)m2xfp_wait(device, device->pushed - device->depth + 1);
}

/* Write what a product reads, and its sizes. */
static inline void m2xfp_operands(m2xfp_device *device, m2xfp_matrix acts, m2xfp_matrix weights,
                                  uint32_t m, uint32_t n, uint32_t k)
{
    m2xfp_room(device);
    m2xfp_write(device, M2XFP_OFFSET(operation), M2XFP_GEMM);
    m2xfp_write(device, M2XFP_OFFSET(m), m);
    m2xfp_write(device, M2XFP_OFFSET(n), n);
    m2xfp_write(device, M2XFP_OFFSET(k), k);
    m2xfp_put(device, M2XFP_OFFSET(a_codes), acts.codes);
    m2xfp_put(device, M2XFP_OFFSET(a_scales), acts.scales);
    m2xfp_put(device, M2XFP_OFFSET(a_meta), acts.meta);
    m2xfp_put(device, M2XFP_OFFSET(w_codes), weights.codes);
    m2xfp_put(device, M2XFP_OFFSET(w_scales), weights.scales);
    m2xfp_put(device, M2XFP_OFFSET(w_meta), weights.meta);
    m2xfp_write(device, M2XFP_OFFSET(a_codes_pitch), acts.codes_pitch);
    m2xfp_write(device, M2XFP_OFFSET(a_scales_pitch), acts.scales_pitch);
    m2xfp_write(device, M2XFP_OFFSET(w_codes_pitch), weights.codes_pitch);
    m2xfp_write(device, M2XFP_OFFSET(w_scales_pitch), weights.scales_pitch);
}

/* Write where packed groups go. */
static inline void m2xfp_packed_out(m2xfp_device *device, m2xfp_matrix out)
{
    m2xfp_put(device, M2XFP_OFFSET(out), out.codes);
    m2xfp_put(device, M2XFP_OFFSET(out_scales), out.scales);
    m2xfp_put(device, M2XFP_OFFSET(out_meta), out.meta);
    m2xfp_write(device, M2XFP_OFFSET(out_pitch), out.codes_pitch);
    m2xfp_write(device, M2XFP_OFFSET(out_scales_pitch), out.scales_pitch);
}

/* Queue out[m, n] = acts[m, k] weights[n, k]^T; device->pushed is its number then. */
static inline int m2xfp_matmul(m2xfp_device *device, m2xfp_matrix acts, m2xfp_matrix weights,
                               m2xfp_values out, uint32_t m, uint32_t n, uint32_t k)
{
    if (k > device->max_k)
        return M2XFP_TOO_LARGE;
    m2xfp_operands(device, acts, weights, m, n, k);
    m2xfp_put(device, M2XFP_OFFSET(out), out.address);
    m2xfp_write(device, M2XFP_OFFSET(out_pitch), out.pitch);
    m2xfp_write(device, M2XFP_OFFSET(kind), (uint32_t)out.kind);
    m2xfp_push(device);
    return 0;
}

/* Queue the same product, its FP32 results packed as activations; n is whole groups. */
static inline int m2xfp_matmul_packed(m2xfp_device *device, m2xfp_matrix acts,
                                      m2xfp_matrix weights, m2xfp_matrix out, uint32_t m,
                                      uint32_t n, uint32_t k)
{
    if (!(device->features & ACCELERATOR__FEATURES__PACKED_RESULTS_bm))
        return M2XFP_NO_FEATURE;
    if (k > device->max_k)
        return M2XFP_TOO_LARGE;
    m2xfp_operands(device, acts, weights, m, n, k);
    m2xfp_packed_out(device, out);
    m2xfp_write(device, M2XFP_OFFSET(kind), (uint32_t)M2XFP_PACKED);
    m2xfp_push(device);
    return 0;
}

static inline int m2xfp_pack(m2xfp_device *device, enum m2xfp_operation operation,
                             m2xfp_values values, m2xfp_matrix out, uint32_t m, uint32_t k)
{
    const uint32_t first = operation == M2XFP_QUANTIZE ? ACCELERATOR__FEATURES__QUANTIZE_FP32_bm
                                                       : ACCELERATOR__FEATURES__ENCODE_FP32_bm;
    if (values.kind == M2XFP_PACKED || !(device->features & first << (uint32_t)values.kind))
        return M2XFP_NO_FEATURE;
    m2xfp_room(device);
    m2xfp_write(device, M2XFP_OFFSET(operation), (uint32_t)operation);
    m2xfp_write(device, M2XFP_OFFSET(m), m);
    m2xfp_write(device, M2XFP_OFFSET(k), k);
    m2xfp_put(device, M2XFP_OFFSET(a_codes), values.address);
    m2xfp_write(device, M2XFP_OFFSET(a_codes_pitch), values.pitch);
    m2xfp_packed_out(device, out);
    m2xfp_write(device, M2XFP_OFFSET(kind), (uint32_t)values.kind);
    m2xfp_push(device);
    return 0;
}

/* Queue packing values [m, k] as activations. */
static inline int m2xfp_quantize(m2xfp_device *device, m2xfp_values values, m2xfp_matrix out,
                                 uint32_t m, uint32_t k)
{
    return m2xfp_pack(device, M2XFP_QUANTIZE, values, out, m, k);
}

/* Queue packing values [m, k] as weights or as a cache. */
static inline int m2xfp_encode(m2xfp_device *device, m2xfp_values values, m2xfp_matrix out,
                               uint32_t m, uint32_t k)
{
    return m2xfp_pack(device, M2XFP_ENCODE, values, out, m, k);
}

#endif
