// The bulk simulator: pushes rows of bytes through the streams of a Verilated unit, checks the stream
// rules in every cycle and records what comes out; a unit without streams is played clock by clock
// through its ports. Generic: ports.h, generated from the unit's JSON, lists the ports. The C
// functions at the end are called through ctypes by simulator.py.
//
// Values live in the model as CData/SData/IData/QData/VlWide, all little-endian on the hosts that
// are supported, so a row of bytes is copied in and out without conversion.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif

namespace {

struct Port {            // a stream as the model has it
    void* data;          // TDATA
    CData* valid;
    CData* ready;
    CData* last;
    size_t bytes;        // bytes of TDATA
    const char* name;
};

struct Signal {          // a port that belongs to no stream
    void* data;
    size_t bytes;
    bool is_input;
};

#include "ports.h"       // input_ports, output_ports, signals, set_clock, set_reset

class Random {           // splitmix64
    uint64_t state;
public:
    explicit Random(uint64_t seed) : state{seed} {}
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
};

class Stall {            // true with the given probability, reproducibly
    Random random;
    uint64_t threshold;  // probability in units of 2^-32
public:
    Stall(double probability, uint64_t seed)
        : random{seed}, threshold{static_cast<uint64_t>(probability * 4294967296.0)} {}
    bool next() { return threshold && (random.next() >> 32) < threshold; }
};

// How a beat came: at once, or after clocks without valid, or after clocks without ready, or both.
struct How {
    bool paused = false, waited = false;
    std::vector<uint8_t> seen;

    void clock(bool valid, bool ready, bool stamping) {
        if (valid && ready) {
            if (stamping) seen.push_back(paused | waited << 1);
            paused = waited = false;
        } else {
            (valid ? waited : paused) = true;
        }
    }
};

struct Input {
    Port port;
    Stall stall{0, 0};
    Random noise{0};
    const uint8_t* rows = nullptr;
    const uint8_t* lasts = nullptr;
    size_t count = 0;
    size_t accepted = 0;
    bool presenting = false;
    std::vector<uint64_t> stamps;
    How how;

    // Put the next row on the port; while nothing is presented the payload is noise, so that a unit
    // that looks at it without valid is found out.
    void drive() {
        if (presenting) return;
        const bool held = accepted < count && stall.next();
        presenting = accepted < count && !held;
        if (presenting) {
            std::memcpy(port.data, rows + accepted * port.bytes, port.bytes);
            *port.last = lasts[accepted];
        } else {
            auto* bytes = static_cast<uint8_t*>(port.data);
            for (size_t i = 0; i < port.bytes; ++i) bytes[i] = noise.next() >> 56;
            *port.last = noise.next() >> 63;
        }
        *port.valid = presenting;
    }
    bool held() const { return accepted < count && !presenting; }
};

struct Output {
    Port port;
    Stall stall{0, 0};
    std::vector<uint8_t> rows, lasts, waiting;
    bool was_stalled = false;
    uint8_t waiting_last = 0;
    size_t accepted = 0;
    std::vector<uint64_t> stamps;
    How how;
};

class Simulator {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#if VM_TRACE_FST
    std::unique_ptr<VerilatedFstC> trace;
#endif
    std::vector<Input> inputs;
    std::vector<Output> outputs;
    std::vector<Signal> side;
    uint64_t cycle = 0;
    uint64_t quiet = 0;
    bool stamping = false;

    void half(bool level) {
        set_clock(*top, level);
        top->eval();
#if VM_TRACE_FST
        if (trace) trace->dump(context.time());
#endif
        context.timeInc(1);
    }

    bool fail(const Port& port, const char* what) {
        error = std::string{port.name} + ": " + what + " in cycle " + std::to_string(cycle);
        return false;
    }

    bool sample(Output& out, bool& moved) {
        const bool valid = *out.port.valid;
        const auto* bytes = static_cast<const uint8_t*>(out.port.data);
        if (out.was_stalled) {
            if (!valid) return fail(out.port, "valid dropped before it was accepted");
            if (std::memcmp(bytes, out.waiting.data(), out.port.bytes)
                || *out.port.last != out.waiting_last)
                return fail(out.port, "the payload changed while it was stalled");
        }
        out.was_stalled = valid && !*out.port.ready;
        if (out.was_stalled) {
            out.waiting.assign(bytes, bytes + out.port.bytes);
            out.waiting_last = *out.port.last;
        } else if (valid) {
            out.rows.insert(out.rows.end(), bytes, bytes + out.port.bytes);
            out.lasts.push_back(*out.port.last);
            if (stamping) out.stamps.push_back(cycle);
            ++out.accepted;
            moved = true;
        }
        return true;
    }

public:
    std::string error;
    std::vector<uint8_t> at_reset;  // valid and ready of each stream in the clock of the reset

    Simulator(uint64_t seed, [[maybe_unused]] const char* wave) {
        // Registers start at random, so that one that reset misses is found out. Verilator takes a
        // seed of 31 bits, and 0 would mean "choose one".
        context.randReset(2);
        context.randSeed(static_cast<int>(seed % 0x7fffffff) + 1);
#if VM_TRACE_FST
        if (wave) context.traceEverOn(true);
#endif
        top = std::make_unique<Vtop>(&context, "top");
        for (const Port& port : input_ports(*top)) inputs.push_back(Input{port});
        for (const Port& port : output_ports(*top)) outputs.push_back(Output{port});
        side = signals(*top);
#if VM_TRACE_FST
        if (wave) {
            trace = std::make_unique<VerilatedFstC>();
            top->trace(trace.get(), 99);
            trace->open(wave);
        }
#endif
    }
    ~Simulator() {
        top->final();
#if VM_TRACE_FST
        if (trace) trace->close();
#endif
    }

    void set_input(size_t i, const uint8_t* rows, const uint8_t* lasts, size_t count,
                   double stall, uint64_t seed) {
        Input& in = inputs[i];
        quiet = in.accepted = 0;
        in.presenting = false;
        in.stamps.clear();
        in.how = {};
        in.rows = rows;
        in.lasts = lasts;
        in.count = count;
        in.stall = Stall{stall, seed};
        in.noise = Random{~seed};
    }
    void set_output(size_t i, double stall, uint64_t seed) { outputs[i].stall = Stall{stall, seed}; }
    void set_signal(size_t i, const uint8_t* value) {
        std::memcpy(side[i].data, value, side[i].bytes);
    }
    void get_signal(size_t i, uint8_t* value) const {
        std::memcpy(value, side[i].data, side[i].bytes);
    }
    void set_stamping(bool on) { stamping = on; }

    void silence() {
        for (Input& in : inputs) *in.port.valid = 0;
        for (Output& out : outputs) *out.port.ready = 0;
    }

    // Whatever the streams offer in this clock is lost, and what came out is forgotten.
    void reset() {
        // One clock is enough, so that a register that waits for a second one is found out.
        set_reset(*top, true);
        half(false);
        at_reset.clear();
        for (const Input& in : inputs) at_reset.push_back(*in.port.valid | *in.port.ready << 1);
        for (const Output& out : outputs) at_reset.push_back(*out.port.valid | *out.port.ready << 1);
        half(true);
        set_reset(*top, false);
        for (Output& out : outputs) out = Output{out.port, out.stall};
        cycle = quiet = 0;
    }

    // Counts of what was executed and of bits that changed, in a file; or from here on.
    void write_coverage([[maybe_unused]] const char* path) {
#if VM_COVERAGE
        context.coveragep()->forcePerInstance(true);
        context.coveragep()->write(path);
#endif
    }
    void zero_coverage() {
#if VM_COVERAGE
        context.coveragep()->zero();
#endif
    }

    // Run at most `cycles` clocks. Returns 0 if there is more to do, 1 if nothing has moved for
    // `patience` clocks in which no stall was of our own making, 2 if a rule was broken.
    int step(uint64_t cycles, uint64_t patience) {
        for (; cycles; --cycles) {
            for (Input& in : inputs) in.drive();
            for (Output& out : outputs) *out.port.ready = !out.stall.next();
            half(false);
            bool moved = false, held = false;
            for (Input& in : inputs) {
                held |= in.held();
                in.how.clock(in.presenting, *in.port.ready, stamping);
                if (in.presenting && *in.port.ready) {
                    if (stamping) in.stamps.push_back(cycle);
                    ++in.accepted;
                    in.presenting = false;
                    moved = true;
                }
            }
            for (Output& out : outputs) {
                held |= *out.port.valid && !*out.port.ready;
                out.how.clock(*out.port.valid, *out.port.ready, stamping);
                if (!sample(out, moved)) return 2;
            }
            half(true);
            ++cycle;
            quiet = moved ? 0 : quiet + !held;
            if (quiet >= patience) return 1;
        }
        return 0;
    }

    // Give the input ports a row of words in every clock, and write down the output ports' words.
    void play_ports(const uint8_t* given, uint8_t* found, size_t clocks) {
        for (; clocks; --clocks) {
            for (const Signal& port : side) {
                if (!port.is_input) continue;
                std::memcpy(port.data, given, port.bytes);
                given += port.bytes;
            }
            half(false);
            for (const Signal& port : side) {
                if (port.is_input) continue;
                std::memcpy(found, port.data, port.bytes);
                found += port.bytes;
            }
            half(true);
            ++cycle;
        }
    }

    uint64_t cycles() const { return cycle; }
    const Input& input(size_t i) const { return inputs[i]; }
    const Output& output(size_t i) const { return outputs[i]; }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Simulator* simulator_new(uint64_t seed, const char* wave) { return new Simulator{seed, wave}; }
EXPORT void simulator_delete(Simulator* s) { delete s; }
EXPORT void simulator_set_input(Simulator* s, size_t i, const uint8_t* rows, const uint8_t* lasts,
                             size_t count, double stall, uint64_t seed) {
    s->set_input(i, rows, lasts, count, stall, seed);
}
EXPORT void simulator_set_output(Simulator* s, size_t i, double stall, uint64_t seed) {
    s->set_output(i, stall, seed);
}
EXPORT void simulator_set_signal(Simulator* s, size_t i, const uint8_t* value) { s->set_signal(i, value); }
EXPORT void simulator_get_signal(Simulator* s, size_t i, uint8_t* value) { s->get_signal(i, value); }
EXPORT void simulator_set_stamping(Simulator* s, int on) { s->set_stamping(on); }
EXPORT void simulator_silence(Simulator* s) { s->silence(); }
EXPORT void simulator_reset(Simulator* s) { s->reset(); }
EXPORT const uint8_t* simulator_at_reset(Simulator* s) { return s->at_reset.data(); }
EXPORT void simulator_write_coverage(Simulator* s, const char* path) { s->write_coverage(path); }
EXPORT void simulator_zero_coverage(Simulator* s) { s->zero_coverage(); }
EXPORT void simulator_play_ports(Simulator* s, const uint8_t* given, uint8_t* found, size_t clocks) {
    s->play_ports(given, found, clocks);
}
EXPORT int simulator_step(Simulator* s, uint64_t cycles, uint64_t patience) {
    return s->step(cycles, patience);
}
EXPORT const char* simulator_error(Simulator* s) { return s->error.c_str(); }
EXPORT uint64_t simulator_cycles(Simulator* s) { return s->cycles(); }
EXPORT size_t simulator_input_accepted(Simulator* s, size_t i) { return s->input(i).accepted; }
EXPORT const uint64_t* simulator_input_stamps(Simulator* s, size_t i) { return s->input(i).stamps.data(); }
EXPORT size_t simulator_output_accepted(Simulator* s, size_t i) { return s->output(i).accepted; }
EXPORT const uint8_t* simulator_output_rows(Simulator* s, size_t i) { return s->output(i).rows.data(); }
EXPORT const uint8_t* simulator_output_lasts(Simulator* s, size_t i) {
    return s->output(i).lasts.data();
}
EXPORT const uint8_t* simulator_input_hows(Simulator* s, size_t i) { return s->input(i).how.seen.data(); }
EXPORT const uint8_t* simulator_output_hows(Simulator* s, size_t i) {
    return s->output(i).how.seen.data();
}
EXPORT const uint64_t* simulator_output_stamps(Simulator* s, size_t i) {
    return s->output(i).stamps.data();
}
