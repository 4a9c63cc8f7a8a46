/* A linear layer on the simulated accelerator: bf16 activations and weights in, FP32 results out.
 *
 *     example m n k INPUT OUTPUT
 *
 * INPUT holds bf16 activations [m, k], then weights [n, k]. The accelerator packs both and
 * multiplies. OUTPUT gets codes, scales and metadata of the activations, those of the weights, and
 * the results [m, n]; then these packed as activations, if the accelerator does that and n is whole
 * groups.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "m2xfp_simulated.h"

static uint8_t *memory;
static const uint64_t memory_bytes = UINT64_C(1) << 22;
static uint64_t used = 128;

/* Return the address of bytes that nobody else has. */
static uint64_t allocate(uint64_t bytes)
{
    const uint64_t address = used;
    used = (used + bytes + 127) / 128 * 128;
    if (used > memory_bytes) {
        fprintf(stderr, "the matrices do not fit into %llu bytes\n",
                (unsigned long long)memory_bytes);
        exit(2);
    }
    return address;
}

/* Groups of four-bit values, each with a byte of scale and one of metadata. */
static m2xfp_matrix new_matrix(const m2xfp_device *device, uint32_t rows, uint32_t k)
{
    m2xfp_matrix matrix;
    matrix.codes_pitch = k / 2;
    matrix.scales_pitch = k / device->group;
    matrix.codes = allocate((uint64_t)rows * matrix.codes_pitch);
    matrix.scales = allocate((uint64_t)rows * matrix.scales_pitch);
    matrix.meta = allocate((uint64_t)rows * matrix.scales_pitch);
    return matrix;
}

static m2xfp_values read_values(FILE *file, uint32_t rows, uint32_t k)
{
    m2xfp_values values;
    values.kind = M2XFP_BF16;
    values.pitch = 2 * k;
    values.address = allocate((uint64_t)rows * values.pitch);
    if (fread(memory + values.address, values.pitch, rows, file) != rows) {
        fprintf(stderr, "the input is too short\n");
        exit(2);
    }
    return values;
}

static void write_matrix(FILE *file, m2xfp_matrix matrix, uint32_t rows)
{
    fwrite(memory + matrix.codes, matrix.codes_pitch, rows, file);
    fwrite(memory + matrix.scales, matrix.scales_pitch, rows, file);
    fwrite(memory + matrix.meta, matrix.scales_pitch, rows, file);
}

int main(int count, char **arguments)
{
    uint32_t m, n, k;
    int status;
    void *model;
    FILE *file;
    m2xfp_device device;
    m2xfp_values x, w, y;
    m2xfp_matrix acts, weights, packed;
    int packs;

    if (count != 6) {
        fprintf(stderr, "usage: example m n k INPUT OUTPUT\n");
        return 2;
    }
    m = (uint32_t)strtoul(arguments[1], NULL, 10);
    n = (uint32_t)strtoul(arguments[2], NULL, 10);
    k = (uint32_t)strtoul(arguments[3], NULL, 10);
    memory = calloc(memory_bytes, 1);
    model = memory ? axi_new(memory, memory_bytes, 1) : NULL;
    if (!model)
        return 2;
    status = m2xfp_open(&device, m2xfp_simulated(model), 1u << 20);
    if (status) {
        fprintf(stderr, "no accelerator of version %u\n", (unsigned)M2XFP_VERSION);
        return 1;
    }

    file = fopen(arguments[4], "rb");
    if (!file) {
        perror(arguments[4]);
        return 2;
    }
    x = read_values(file, m, k);
    w = read_values(file, n, k);
    fclose(file);
    acts = new_matrix(&device, m, k);
    weights = new_matrix(&device, n, k);
    packed = new_matrix(&device, m, n);
    packs = n % device.group == 0 && device.features & ACCELERATOR__FEATURES__PACKED_RESULTS_bm;
    y.kind = M2XFP_FP32;
    y.pitch = 4 * n;
    y.address = allocate((uint64_t)m * y.pitch);

    /* Descriptors in the queue: each uses what those before it have written. */
    status = m2xfp_quantize(&device, x, acts, m, k);
    if (!status)
        status = m2xfp_encode(&device, w, weights, n, k);
    if (!status)
        status = m2xfp_matmul(&device, acts, weights, y, m, n, k);
    if (!status && packs)
        status = m2xfp_matmul_packed(&device, acts, weights, packed, m, n, k);
    if (!status)
        status = m2xfp_wait(&device, device.pushed);
    if (status) {
        fprintf(stderr, "descriptor %u: error %d\n", (unsigned)device.failed, status);
        return 1;
    }

    file = fopen(arguments[5], "wb");
    if (!file) {
        perror(arguments[5]);
        return 2;
    }
    write_matrix(file, acts, m);
    write_matrix(file, weights, n);
    fwrite(memory + y.address, y.pitch, m, file);
    if (packs)
        write_matrix(file, packed, m);
    if (fclose(file)) {
        perror(arguments[5]);
        return 2;
    }
    axi_delete(model);
    free(memory);
    printf("%u x %u x %u: %u descriptors\n", (unsigned)m, (unsigned)n, (unsigned)k,
           (unsigned)device.completed);
    return 0;
}
