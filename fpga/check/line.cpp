// The design on a board as a shared library: a waveform on rx in, a waveform on tx out. The C
// functions at the end are called through ctypes by line.py.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

namespace {

class Line {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    uint64_t cycle = 0;

    void clock() {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
    }

public:
    std::vector<uint64_t> toggles;  // of tx in the last run

    explicit Line(uint64_t seed) {
        context.randReset(2);
        context.randSeed(static_cast<int>(seed & 0x7FFFFFFF));
        top = std::make_unique<Vtop>(&context);
        top->rx = 1;
        top->rst = 1;
        clock();
        clock();
        top->rst = 0;
        top->clk = 0;
        top->eval();
    }
    ~Line() { top->final(); }

    // Toggle rx before the clocks `at`, counted from the start of the run, and go on until neither
    // line has changed for `quiet` clocks with the design at rest, or until `limit`.
    uint64_t run(const uint64_t* at, size_t count, uint64_t quiet, uint64_t limit) {
        toggles.clear();
        uint64_t now = 0;
        for (uint64_t still = 0; now < limit; ++now) {
            for (; count && *at <= now; ++at, --count) {
                top->rx = !top->rx;
                still = 0;
            }
            const bool before = top->tx;
            clock();
            ++still;
            if (top->tx != before) {
                toggles.push_back(now);
                still = 0;
            }
            if (!count && !top->busy && still >= quiet) break;
        }
        cycle += now;
        return cycle;
    }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Line* line_new(uint64_t seed) { return new Line{seed}; }
EXPORT void line_delete(Line* line) { delete line; }
EXPORT uint64_t line_run(Line* line, const uint64_t* at, size_t count, uint64_t quiet,
                         uint64_t limit) {
    return line->run(at, count, quiet, limit);
}
EXPORT size_t line_toggle_count(Line* line) { return line->toggles.size(); }
EXPORT const uint64_t* line_toggles(Line* line) { return line->toggles.data(); }
