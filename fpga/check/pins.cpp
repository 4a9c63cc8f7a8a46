// Chips on their pins: clocks a Verilated netlist that holds several machines, sends bytes into the
// serial input that they share, and decodes the serial output of each. Called through ctypes from
// m2xfp/fpga/check/pins.py.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "Vchip.h"

namespace {

// Decodes one serial line. It has the chip's clock, so bits begin at the very clock.
struct Receiver {
    unsigned left = 0, shift = 0;
    unsigned rest = 0;  // clocks of the stop bit that are still to come
    bool broken = false;  // a byte had no stop bit, or a bit another length
    bool before = true;
    std::vector<uint8_t> bytes;

    void clock(bool line, unsigned divisor) {
        bool edge = line != before;
        before = line;
        if (!left) {
            broken |= rest && !line;
            if (rest) --rest;
            if (!line) left = 10 * divisor, shift = 0;
            return;
        }
        unsigned elapsed = 10 * divisor - --left;
        broken |= edge && elapsed % divisor != 0;
        if (elapsed % divisor != divisor / 2) return;
        unsigned bit = elapsed / divisor;
        if (bit >= 1 && bit <= 8) shift |= unsigned(line) << (bit - 1);
        if (bit == 9) {
            broken |= !line;
            bytes.push_back(uint8_t(shift));
            left = 0;  // the line is high until the next start bit
            rest = divisor - divisor / 2 - 1;
        }
    }
};

class Pins {
  public:
    Pins(unsigned lanes, unsigned divisor, unsigned batch)
        : divisor_(divisor), lanes_(~uint64_t(0) >> (64 - lanes)), receivers_(lanes) {
        chip_.rx = 1;
        chip_.batch = batch;
        chip_.clk = 0;
        chip_.eval();
    }

    ~Pins() { chip_.final(); }

    // Send bytes back to back, each bit `period` / 4096 clocks long, and run until the line of
    // lane 0 has been still for `quiet` clocks.
    void exchange(const uint8_t *request, std::size_t size, uint64_t period, uint64_t quiet) {
        uint64_t sent = 0, ends = 0;
        for (Receiver &receiver : receivers_) receiver.bytes.clear();
        for (std::size_t i = 0; i < size; ++i) {
            unsigned frame = 0x200u | unsigned(request[i]) << 1;
            for (unsigned bit = 0; bit < 10; ++bit)
                for (ends += period; sent < ends; sent += 4096) clock(frame >> bit & 1);
        }
        for (uint64_t still = 0; still < quiet; ++still) {
            clock(true);
            if (receivers_[0].left) still = 0;
        }
    }

    const Receiver &receiver(unsigned lane) const { return receivers_[lane]; }
    uint64_t clocks() const { return clocks_; }
    uint64_t hits() const { return hits_; }

  private:
    void clock(bool rx) {
        chip_.rx = rx;
        chip_.clk = 0;
        chip_.eval();  // the new input settles, as it does between edges
        hits_ |= chip_.hit;
        chip_.clk = 1;
        chip_.eval();
        ++clocks_;
        uint64_t low = ~uint64_t(chip_.tx) & lanes_;
        if (!low && !busy_) return;
        busy_ = 0;
        for (std::size_t lane = 0; lane < receivers_.size(); ++lane) {
            receivers_[lane].clock(!(low >> lane & 1), divisor_);
            busy_ |= uint64_t(receivers_[lane].left || receivers_[lane].rest) << lane;
        }
    }

    Vchip chip_;
    unsigned divisor_;
    uint64_t lanes_, busy_ = 0;  // which lanes there are; which receive a byte
    std::vector<Receiver> receivers_;
    uint64_t clocks_ = 0, hits_ = 0;
};

Pins &pins(void *handle) { return *static_cast<Pins *>(handle); }

}  // namespace

#pragma GCC visibility push(default)  // everything else stays inside the library
extern "C" {

void *pins_new(unsigned lanes, unsigned divisor, unsigned batch) {
    return new Pins(lanes, divisor, batch);
}
void pins_delete(void *handle) { delete &pins(handle); }
void pins_exchange(
    void *handle, const uint8_t *request, std::size_t size, uint64_t period, uint64_t quiet) {
    pins(handle).exchange(request, size, period, quiet);
}
std::size_t pins_size(void *handle, unsigned lane) { return pins(handle).receiver(lane).bytes.size(); }
const uint8_t *pins_bytes(void *handle, unsigned lane) {
    return pins(handle).receiver(lane).bytes.data();
}
int pins_broken(void *handle, unsigned lane) { return pins(handle).receiver(lane).broken; }
uint64_t pins_clocks(void *handle) { return pins(handle).clocks(); }
uint64_t pins_hits(void *handle) { return pins(handle).hits(); }
}
#pragma GCC visibility pop
