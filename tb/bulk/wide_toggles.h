// Stands before Verilator's header of this name in a build that counts coverage. Verilator 5.048
// counts a bit of a wide signal that changes as one of each word above it too, up to the signal's
// end: its loop over the bits of a word does not end with the word. This one does.

#include_next "verilated_cov.h"

#ifndef M2XFP_WIDE_TOGGLES
#define M2XFP_WIDE_TOGGLES

static inline void m2xfp_count_wide(int width, uint32_t* counts, WDataInP now, WDataInP before) {
    for (int bit = 0; bit < width; ++bit) {
        const EData word = now[VL_BITWORD_E(bit)], changed = word ^ before[VL_BITWORD_E(bit)];
        counts[2 * bit + (word >> VL_BITBIT_E(bit) & 1)] += changed >> VL_BITBIT_E(bit) & 1;
    }
}

#define VL_COV_TOGGLE_CHG_ST_W m2xfp_count_wide

#endif
