/* The emitted accelerator in Verilator behind the driver: the library that `m2xfp driver` builds. */

#ifndef M2XFP_SIMULATED_H
#define M2XFP_SIMULATED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "m2xfp_accelerator.h"

#define M2XFP_SIMULATED_PATIENCE (UINT64_C(1) << 22) /* clocks */

/* Of the library: memory from address 0 on, which the caller owns and both sides see. */
void *axi_new(uint8_t *memory, uint64_t bytes, uint64_t seed);
void axi_delete(void *model);
void axi_memory(void *model, double pauses, uint64_t latency, double bytes_a_clock);
int axi_write(void *model, uint32_t offset, uint32_t word, uint64_t patience);
int axi_read(void *model, uint32_t offset, uint32_t *word, uint64_t patience);
int axi_wait(void *model, uint64_t clocks);
const char *axi_error(void *model);

static inline void m2xfp_simulated_check(void *model, int failed)
{
    const char *error = axi_error(model);
    if (failed || error[0]) {
        fprintf(stderr, "the accelerator: %s\n", error[0] ? error : "does not answer");
        exit(3);
    }
}

static inline uint32_t m2xfp_simulated_read(void *model, uint32_t offset)
{
    uint32_t word = 0;
    m2xfp_simulated_check(model, axi_read(model, offset, &word, M2XFP_SIMULATED_PATIENCE) != 0);
    return word;
}

static inline void m2xfp_simulated_write(void *model, uint32_t offset, uint32_t word)
{
    m2xfp_simulated_check(model, axi_write(model, offset, word, M2XFP_SIMULATED_PATIENCE) != 0);
}

static inline void m2xfp_simulated_wait(void *model)
{
    m2xfp_simulated_check(model, axi_wait(model, M2XFP_SIMULATED_PATIENCE) == 0);
}

static inline m2xfp_bus m2xfp_simulated(void *model)
{
    m2xfp_bus bus;
    bus.context = model;
    bus.read = m2xfp_simulated_read;
    bus.write = m2xfp_simulated_write;
    bus.wait = m2xfp_simulated_wait;
    return bus;
}

#endif
