// What the bulk simulator needs of Verilator, on top of CXXRTL.
#pragma once

#include <cstdint>
#include <memory>
#include <random>

#include "cxxrtl/cxxrtl.h"

#define VM_TRACE_FST 0
#define VM_COVERAGE 0

using CData = uint8_t;

class VerilatedContext {
    uint64_t now = 0;
public:
    int seed = 1;
    void randReset(int) {}
    void randSeed(int value) { seed = value; }
    void timeInc(uint64_t by) { now += by; }
    uint64_t time() const { return now; }
};

// The byte that a port's value begins with: chunks are 32 bits, lowest first, on a little-endian host.
template<size_t Bits>
uint8_t& low_byte(cxxrtl::value<Bits>& port) { return reinterpret_cast<uint8_t&>(port.data[0]); }
template<size_t Bits>
uint8_t& low_byte(cxxrtl::wire<Bits>& port) { return low_byte(port.curr); }

// Give each register any contents, so that one that reset misses is found out.
template<class Model>
void randomise(Model& model, const VerilatedContext& context) {
    cxxrtl::debug_items items;
    model.debug_info(&items, nullptr, "");
    std::mt19937 random(context.seed);
    for (auto& [name, parts] : items.table) {
        for (cxxrtl::debug_item& part : parts) {
            if (part.type != cxxrtl::debug_item::WIRE || !part.next) continue;
            if (!(part.flags & cxxrtl::debug_item::DRIVEN_SYNC)) continue;
            const size_t chunks = (part.width + 31) / 32;
            for (size_t n = 0; n < chunks; ++n) {
                uint32_t word = random();
                if (n == chunks - 1 && part.width % 32) word &= (1u << part.width % 32) - 1;
                part.curr[n] = part.next[n] = word;
            }
        }
    }
}
