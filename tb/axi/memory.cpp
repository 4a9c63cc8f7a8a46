// An accelerator between a processor and a memory: AXI4-Lite to its registers, AXI4 from its three
// masters to one memory with latency, limited bandwidth, pauses and places that answer with errors
// or not at all. Every channel is held to the rules of AXI in every clock. Driven through ctypes by
// model.py; widths.h, generated, has BUS, the bytes of a word.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"
#include "widths.h"

namespace {

constexpr uint64_t PAGE = 4096;

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

struct Range {           // bytes [start, end) with something special about them
    uint64_t start, end;
    int response;        // 2 SLVERR, 3 DECERR, 4 never answers
};

struct Burst {
    uint64_t address = 0;
    unsigned beats = 0, done = 0;
    int response = 0;
    uint64_t due = 0;    // clock in which the first answer may come
};

struct AddressPort {     // AR or AW of a master
    const char* name;
    QData (*addr)(Vtop&);
    CData& len; CData& size; CData& burst; CData& valid; CData& ready;
    bool held = false;
    uint64_t held_addr = 0;
    unsigned held_len = 0;
};

struct Model {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    uint8_t* memory;
    uint64_t bytes;
    std::vector<Range> ranges;
    std::vector<Range> windows;   // where writes may go
    Random random;
    uint64_t threshold = 0;       // of a pause, in units of 2^-32
    uint64_t latency = 0;
    double rate = 1e9, credit = 0;  // bytes a clock that all buses together may move
    int served = 1;                 // reader that was given a beat last
    uint64_t clock = 0, moved = 0, read_bytes = 0, written_bytes = 0;
    std::string error;
    std::vector<AddressPort> addresses;   // acts, weights, results
    std::deque<Burst> reads[2], writes;   // accepted
    std::deque<Burst> answers;            // written, waiting for B
    struct Word { uint8_t data[BUS]; uint64_t strb[(BUS + 63) / 64]; bool last; };
    std::deque<Word> words;               // of W, accepted
    bool w_held = false, offered[2] = {false, false}, b_offered = false;
    Word w_waiting{};
    bool lite_held_b = false, lite_held_r = false, lite_owed_b = false;
    uint64_t lite_b = 0, lite_r = 0, lite_words = 0, lite_addresses = 0, lite_answers = 0;
    int lite_owed_r = 0;

    Model(uint8_t* place, uint64_t size, uint64_t seed)
        : memory{place}, bytes{size}, random{seed} {
        context.randReset(2);
        context.randSeed(static_cast<int>(seed % 0x7fffffff) + 1);
        top = std::make_unique<Vtop>(&context, "top");
        Vtop& t = *top;
        addresses.reserve(3);
        addresses.push_back(
            {"acts AR", [](Vtop& v) { return QData(v.m_axi_acts_araddr); }, t.m_axi_acts_arlen,
             t.m_axi_acts_arsize, t.m_axi_acts_arburst, t.m_axi_acts_arvalid,
             t.m_axi_acts_arready});
        addresses.push_back(
            {"weights AR", [](Vtop& v) { return QData(v.m_axi_weights_araddr); },
             t.m_axi_weights_arlen, t.m_axi_weights_arsize, t.m_axi_weights_arburst,
             t.m_axi_weights_arvalid, t.m_axi_weights_arready});
        addresses.push_back(
            {"results AW", [](Vtop& v) { return QData(v.m_axi_results_awaddr); },
             t.m_axi_results_awlen, t.m_axi_results_awsize, t.m_axi_results_awburst,
             t.m_axi_results_awvalid, t.m_axi_results_awready});
        reset();
    }

    ~Model() { top->final(); }

    void fail(const std::string& what) {
        if (error.empty()) error = what + " in clock " + std::to_string(clock);
    }

    bool pauses() { return threshold && (random.next() >> 32) < threshold; }

    void reset() {
        Vtop& t = *top;
        t.s_axi_control_awvalid = t.s_axi_control_wvalid = t.s_axi_control_arvalid = 0;
        t.s_axi_control_bready = t.s_axi_control_rready = 0;
        for (AddressPort& port : addresses) port.ready = 0, port.held = false;
        t.m_axi_acts_rvalid = t.m_axi_weights_rvalid = t.m_axi_results_bvalid = 0;
        t.m_axi_results_wready = 0;
        for (auto& queue : reads) queue.clear();
        writes.clear(); answers.clear(); words.clear();
        w_held = b_offered = offered[0] = offered[1] = lite_owed_b = false;
        lite_words = lite_addresses = lite_answers = 0;
        lite_owed_r = 0;
        t.rst = 1;
        for (int n = 0; n < 2; ++n) {
            t.clk = 0; t.eval(); t.clk = 1; t.eval();
        }
        for (AddressPort& port : addresses)
            if (port.valid) fail(std::string(port.name) + ": valid in reset");
        if (t.m_axi_results_wvalid) fail("results W: valid in reset");
        if (t.s_axi_control_bvalid || t.s_axi_control_rvalid) fail("control: valid in reset");
        lite_held_b = lite_held_r = false;
        t.rst = 0;
    }

    // Whether a burst may be answered: what never answers does once its range is forgotten.
    bool answers_now(Burst& burst) {
        if (burst.response == 4)
            burst.response = response_of(burst.address, uint64_t(burst.beats) * BUS);
        return burst.due <= clock && burst.response != 4;
    }

    int response_of(uint64_t address, uint64_t length) {
        for (const Range& range : ranges)
            if (address < range.end && range.start < address + length) return range.response;
        return address + length <= bytes ? 0 : 3;
    }

    void drive_read(int which, CData& valid, VlWide<BUS / 4>& data, CData& resp, CData& last) {
        auto& queue = reads[which];
        if (!offered[which]) {
            bool go = !queue.empty() && answers_now(queue.front())
                && credit >= BUS && !pauses();
            if (go) {
                Burst& burst = queue.front();
                const uint64_t at = burst.address + uint64_t(burst.done) * BUS;
                if (at + BUS <= bytes) std::memcpy(data.data(), memory + at, BUS);
                else std::memset(data.data(), 0xA5, BUS);
                resp = burst.response;
                last = burst.done + 1 == burst.beats;
                offered[which] = true;
                served = which;
                credit -= BUS;
            }
        }
        valid = offered[which];
    }

    void took_read(int which, bool taken) {
        if (!taken) return;
        auto& queue = reads[which];
        offered[which] = false;
        ++moved;
        read_bytes += BUS;
        if (++queue.front().done == queue.front().beats) queue.pop_front();
    }

    // INCR, whole words, none across 4 KB, and as it is while it waits.
    void check_address(AddressPort& port, std::deque<Burst>& queue) {
        Vtop& t = *top;
        if (port.held && (!port.valid || port.addr(t) != port.held_addr || port.len != port.held_len))
            fail(std::string(port.name) + ": changed or dropped while it waited");
        port.held = port.valid && !port.ready;
        if (!port.valid) return;
        const uint64_t address = port.addr(t), length = uint64_t(port.len + 1) * BUS;
        port.held_addr = address;
        port.held_len = port.len;
        if (port.burst != 1 || (1u << port.size) != BUS || address % BUS)
            fail(std::string(port.name) + ": no aligned INCR burst of whole words");
        if (address / PAGE != (address + length - 1) / PAGE)
            fail(std::string(port.name) + ": a burst crosses 4 KB");
        if (!port.ready) return;
        Burst burst;
        burst.address = address;
        burst.beats = port.len + 1;
        burst.response = response_of(address, length);
        burst.due = clock + 1 + latency;
        queue.push_back(burst);
        ++moved;
    }

    void take_word() {
        Vtop& t = *top;
        Word word;
        std::memset(&word, 0, sizeof word);
        std::memcpy(word.data, t.m_axi_results_wdata.data(), BUS);
        std::memcpy(word.strb, &t.m_axi_results_wstrb, BUS / 8);
        word.last = t.m_axi_results_wlast;
        const bool valid = t.m_axi_results_wvalid, ready = t.m_axi_results_wready;
        if (w_held && (!valid || std::memcmp(&word, &w_waiting, sizeof word)))
            fail("results W: changed or dropped while it waited");
        w_held = valid && !ready;
        w_waiting = word;
        if (valid && ready) {
            words.push_back(word);
            ++moved;
        }
    }

    void settle_writes() {
        while (!writes.empty() && !words.empty()) {
            Burst& burst = writes.front();
            const Word& word = words.front();
            const bool last = burst.done + 1 == burst.beats;
            if (word.last != last) fail("results W: WLAST is not on the last beat");
            const uint64_t at = burst.address + uint64_t(burst.done) * BUS;
            for (unsigned lane = 0; lane < BUS; ++lane) {
                if (!(word.strb[lane / 64] >> lane % 64 & 1)) continue;
                bool allowed = windows.empty();
                for (const Range& window : windows)
                    allowed |= window.start <= at + lane && at + lane < window.end;
                if (!allowed) fail("results W: writes beside its descriptors, to "
                                   + std::to_string(at + lane));
                if (burst.response == 0 && at + lane < bytes) memory[at + lane] = word.data[lane];
                ++written_bytes;
            }
            words.pop_front();
            if (++burst.done == burst.beats) {
                burst.due = clock + 1 + latency;
                answers.push_back(burst);
                writes.pop_front();
            }
        }
        if (writes.empty() && words.size() > 256) fail("results W: data without an address");
    }

    void tick() {
        Vtop& t = *top;
        credit = std::min(credit + rate, 4 * rate + 2.0 * BUS);
        for (AddressPort& port : addresses) port.ready = !pauses();
        // A word of results that waited comes before all reads: they would take everything.
        const bool word_first = w_held && credit >= BUS && !pauses();
        if (word_first) credit -= BUS;
        const int first = 1 - served;     // whoever got a beat last comes last
        for (int n = 0; n < 2; ++n) {
            if ((n ^ first) == 0)
                drive_read(0, t.m_axi_acts_rvalid, t.m_axi_acts_rdata, t.m_axi_acts_rresp,
                           t.m_axi_acts_rlast);
            else
                drive_read(1, t.m_axi_weights_rvalid, t.m_axi_weights_rdata,
                           t.m_axi_weights_rresp, t.m_axi_weights_rlast);
        }
        t.m_axi_results_wready = word_first || (!w_held && credit >= BUS && !pauses());
        if (!b_offered && !answers.empty() && answers_now(answers.front()) && !pauses()) {
            b_offered = true;
            t.m_axi_results_bresp = answers.front().response;
        }
        t.m_axi_results_bvalid = b_offered;
        t.clk = 0;
        t.eval();
        check_address(addresses[0], reads[0]);
        check_address(addresses[1], reads[1]);
        check_address(addresses[2], writes);
        took_read(0, t.m_axi_acts_rvalid && t.m_axi_acts_rready);
        took_read(1, t.m_axi_weights_rvalid && t.m_axi_weights_rready);
        if (t.m_axi_results_wvalid && t.m_axi_results_wready && !word_first) credit -= BUS;
        take_word();
        settle_writes();
        if (b_offered && t.m_axi_results_bready) {
            b_offered = false;
            answers.pop_front();
            ++moved;
        }
        check_lite();
        t.clk = 1;
        t.eval();
        ++clock;
    }

    void check_lite() {
        Vtop& t = *top;
        const uint64_t b = t.s_axi_control_bresp;
        const uint64_t r = uint64_t(t.s_axi_control_rdata) << 2 | t.s_axi_control_rresp;
        if (lite_held_b && (!t.s_axi_control_bvalid || b != lite_b))
            fail("control B: changed or dropped while it waited");
        if (lite_held_r && (!t.s_axi_control_rvalid || r != lite_r))
            fail("control R: changed or dropped while it waited");
        if (t.s_axi_control_bvalid && !lite_owed_b) fail("control B: comes before its write");
        if (t.s_axi_control_rvalid && !lite_owed_r) fail("control R: comes before its read");
        lite_held_b = t.s_axi_control_bvalid && !t.s_axi_control_bready;
        lite_held_r = t.s_axi_control_rvalid && !t.s_axi_control_rready;
        lite_b = b;
        lite_r = r;
        // What was accepted before this clock may be answered in it.
        lite_words += int(t.s_axi_control_wvalid && t.s_axi_control_wready);
        lite_addresses += int(t.s_axi_control_awvalid && t.s_axi_control_awready);
        lite_answers += int(t.s_axi_control_bvalid && t.s_axi_control_bready);
        lite_owed_b = std::min(lite_words, lite_addresses) > lite_answers;
        lite_owed_r += int(t.s_axi_control_arvalid && t.s_axi_control_arready)
            - int(t.s_axi_control_rvalid && t.s_axi_control_rready);
    }

    // Write a register; return its response, -1 if none comes.
    int write(uint32_t address, uint32_t word, uint64_t patience) {
        Vtop& t = *top;
        bool address_done = false, word_done = false;
        t.s_axi_control_awaddr = address;
        t.s_axi_control_wdata = word;
        t.s_axi_control_wstrb = 15;
        for (; patience; --patience) {
            if (!t.s_axi_control_awvalid) t.s_axi_control_awvalid = !address_done && !pauses();
            if (!t.s_axi_control_wvalid) t.s_axi_control_wvalid = !word_done && !pauses();
            t.s_axi_control_bready = !pauses();
            // Ready follows from registers: it is that of this clock already.
            const bool a = t.s_axi_control_awvalid && t.s_axi_control_awready;
            const bool w = t.s_axi_control_wvalid && t.s_axi_control_wready;
            const bool b = t.s_axi_control_bvalid && t.s_axi_control_bready;
            const int response = t.s_axi_control_bresp;
            tick();
            if (a) address_done = true, t.s_axi_control_awvalid = 0;
            if (w) word_done = true, t.s_axi_control_wvalid = 0;
            if (b) {
                if (!address_done || !word_done) fail("control B: comes before its write");
                t.s_axi_control_bready = 0;
                return response;
            }
        }
        return -1;
    }

    int read(uint32_t address, uint32_t* word, uint64_t patience) {
        Vtop& t = *top;
        bool asked = false;
        t.s_axi_control_araddr = address;
        for (; patience; --patience) {
            if (!t.s_axi_control_arvalid) t.s_axi_control_arvalid = !asked && !pauses();
            t.s_axi_control_rready = !pauses();
            const bool a = t.s_axi_control_arvalid && t.s_axi_control_arready;
            const bool r = t.s_axi_control_rvalid && t.s_axi_control_rready;
            const int response = t.s_axi_control_rresp;
            if (r) *word = t.s_axi_control_rdata;
            tick();
            if (a) asked = true, t.s_axi_control_arvalid = 0;
            if (r) {
                t.s_axi_control_rready = 0;
                return response;
            }
        }
        return -1;
    }
};

}  // namespace

extern "C" {

#define API __attribute__((visibility("default")))

API void* axi_new(uint8_t* memory, uint64_t bytes, uint64_t seed) {
    return new Model{memory, bytes, seed};
}
API void axi_delete(void* model) { delete static_cast<Model*>(model); }
API void axi_reset(void* model) { static_cast<Model*>(model)->reset(); }
API void axi_memory(void* model, double pauses, uint64_t latency, double rate) {
    auto& m = *static_cast<Model*>(model);
    m.threshold = static_cast<uint64_t>(pauses * 4294967296.0);
    m.latency = latency;
    m.rate = rate > 0 ? rate : 1e9;
    m.served = 1;
}
API void axi_range(void* model, uint64_t start, uint64_t end, int response) {
    static_cast<Model*>(model)->ranges.push_back({start, end, response});
}
API void axi_window(void* model, uint64_t start, uint64_t end) {
    static_cast<Model*>(model)->windows.push_back({start, end, 0});
}
API void axi_forget(void* model) {
    auto& m = *static_cast<Model*>(model);
    m.ranges.clear();
    m.windows.clear();
}
API int axi_write(void* model, uint32_t address, uint32_t word, uint64_t patience) {
    return static_cast<Model*>(model)->write(address, word, patience);
}
API int axi_read(void* model, uint32_t address, uint32_t* word, uint64_t patience) {
    return static_cast<Model*>(model)->read(address, word, patience);
}
// Run until the interrupt, or for so many clocks; return whether it came.
API int axi_wait(void* model, uint64_t clocks) {
    auto& m = *static_cast<Model*>(model);
    for (; clocks && m.error.empty(); --clocks) {
        if (m.top->irq) return 1;
        m.tick();
    }
    return m.top->irq;
}
API uint64_t axi_count(void* model, int which) {
    auto& m = *static_cast<Model*>(model);
    const uint64_t counts[] = {m.clock, m.read_bytes, m.written_bytes, m.moved};
    return counts[which];
}
API const char* axi_error(void* model) { return static_cast<Model*>(model)->error.c_str(); }

}
