// The clocks of the accelerator, without its values: where every counter, queue and burst stands in
// each clock of a product, before the memory of memory.cpp. Written from docs/accelerator-unit.md
// and docs/gemm.md, and shares nothing with the hardware or its emission; tests hold it against the
// emitted Verilog clock for clock. Driven through ctypes by cycles.py.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "packing_cycles.h"

namespace {

constexpr int64_t PAGE = 4096;
constexpr int OWED_WRITES = 15;
constexpr int64_t PATIENCE = 1 << 21;      // clocks without a byte or a product: it hangs

struct Build {               // of the accelerator
    int64_t rows, columns, chains, depth, chunk, slots, bus, weight_rows, group;
    int64_t outstanding, act_planes, weight_planes;
    int64_t unit, value_chunk, gather, code_bytes;      // unit: bytes of a beat of values
    int64_t wide_quantizer, wide_encoder;               // they take FP32
};

struct Plane {
    int64_t address, pitch, size;      // size: bytes a group
};

struct Product {             // or values [m, k] to pack, at acts[0]
    int64_t operation, packed, m, n, k;
    Plane acts[3], weights[3];
    int64_t out, out_pitch, value_bytes, out_scales, out_meta, out_scales_pitch;
};

constexpr int64_t GEMM = 1, ENCODE = 3;

struct Counts {
    int64_t clocks, work, wait_acts, wait_weights, wait_results, read, written;
};

struct Burst {
    int64_t beats, done, due;
    int slot;                // of the chunk; -1 for writes
    bool fills;              // its last beat fills the slot
};

// Words of the next burst: those that are left, up to the end of the page.
int64_t next_burst(int64_t address, int64_t left, int64_t bus) {
    return std::min(left, PAGE / bus - address % PAGE / bus);
}

// The memory's side: a rate for all buses together, and a latency.
struct Memory {
    double rate, credit;
    int64_t latency, bus;
    int last = 1;            // reader that was given a beat last: the other one comes first

    void earn() { credit = std::min(credit + rate, 4 * rate + 2.0 * double(bus)); }
    bool spend() {
        if (credit < double(bus)) return false;
        credit -= double(bus);
        return true;
    }
};

// One matrix: asks for it chunk by chunk, keeps a few chunks, gives them group by group.
struct Fetcher {
    const Build& build;
    const Plane* planes;
    int64_t planes_count, height, turns, rows, groups, passes, chunk;   // height: rows a beat
    // What asks.
    int64_t pass = 0, top = 0, first = 0, row = 0, plane;
    bool active = false, begins = true, keeps;
    std::vector<int64_t> covered;      // the last word of the row before, of each plane
    int ask_slot = 0;
    std::vector<char> claimed, full;
    std::vector<int64_t> chunk_groups, chunk_turns;
    // What gives.
    int give_slot = 0;
    int64_t group = 0, turn = 0, given = 0;       // given: passes
    int64_t groups_given = 0;
    bool there = false;
    // The master.
    bool working = false, waits = false;
    int64_t address = 0, left = 0;
    int tag_slot = 0;
    bool tag_fills = false;
    std::deque<Burst> owed;            // by the memory, some not accepted yet
    int64_t accepted = 0;              // of these, at the memory
    bool offered = false;

    Fetcher(const Build& b, const Plane* p, int64_t c, int64_t h, int64_t t, int64_t r, int64_t g,
            int64_t n, int64_t most)
        : build{b}, planes{p}, planes_count{c}, height{h}, turns{t}, rows{r}, groups{g}, passes{n},
          chunk{most}, plane{first_plane()}, keeps{false}, covered(c),
          claimed(b.slots), full(b.slots), chunk_groups(b.slots), chunk_turns(b.slots) {
        keeps = r <= h * t && g <= chunk + (b.slots - 1) * advance();
    }

    // Codes come last: their last row is always read, so that the chunk ends with a word.
    int64_t first_plane() const { return planes_count > 1 ? 1 : 0; }

    int64_t block() const { return std::min(height * turns, rows - top); }
    // Chunks begin with words of scales where they hold some; the last one is as long as it may be.
    int64_t advance() const { return chunk > build.bus ? chunk / build.bus * build.bus : chunk; }
    int64_t count() const { return groups - first <= chunk ? groups - first : advance(); }

    // The memory offers a beat if it can.
    void drive(Memory& memory, int64_t clock, int which) {
        if (!offered && accepted && owed.front().due <= clock && memory.spend()) {
            offered = true;
            memory.last = which;
        }
    }

    // A clock; `taken`: what it gives is taken if it is there.
    void step(Memory& memory, int64_t clock, bool starts, bool taken, int64_t& read) {
        // Beats come back.
        int filled = -1;
        const bool comes = offered;
        bool burst_ends = false;
        if (comes) {
            Burst& burst = owed.front();
            offered = false;
            read += build.bus;
            burst_ends = ++burst.done == burst.beats;
            if (burst_ends && burst.fills) filled = burst.slot;
        }
        // Chunks are given.
        const bool go = full[give_slot] && (!there || taken);
        int used = -1;
        const bool next_there = go || (there && !taken);
        if (go) {
            const bool turn_ends = turn + 1 == chunk_turns[give_slot];
            const bool group_ends = group + 1 == chunk_groups[give_slot];
            turn = turn_ends ? 0 : turn + 1;
            if (turn_ends) ++group;
            if (turn_ends && group_ends) {
                // What the slots hold as a whole stays there until its last pass.
                if (!keeps || given + 1 == passes) used = give_slot;
                group = 0;
                groups_given += chunk_groups[give_slot];
                give_slot = (give_slot + 1) % int(build.slots);
                if (groups_given == groups && keeps) {
                    groups_given = 0;
                    if (++given < passes) give_slot = 0;
                }
            }
        }
        // The master: a request becomes bursts, an address waits a clock for the memory.
        const bool issue = working && !waits && int64_t(owed.size()) != build.outstanding;
        const bool asked = active && (!begins || !claimed[ask_slot]) && (!working || is_there());
        if (waits) {
            owed[accepted].due = clock + 1 + memory.latency;
            ++accepted;
            waits = false;
        }
        if (burst_ends) {
            owed.pop_front();
            --accepted;
        }
        if (issue) {
            const int64_t beats = next_burst(address, left, build.bus);
            owed.push_back({beats, 0, 0, tag_slot, tag_fills && beats == left});
            waits = true;
            address = address / build.bus * build.bus + beats * build.bus;
            left -= beats;
            if (!left) working = false;
        }
        if (asked) ask();
        if (starts) active = true;
        if (filled >= 0) full[filled] = 1;
        if (used >= 0) full[used] = claimed[used] = 0;
        there = next_there;
    }

    int64_t start() const {
        return planes[plane].address + (top + row) * planes[plane].pitch + first * planes[plane].size;
    }
    int64_t last_word() const {
        return (start() + count() * planes[plane].size - 1) / build.bus;
    }
    bool ends() const { return plane == 0 && row + 1 == block(); }
    // Whether the row begins in the word that the row beside it ended with.
    bool shares() const { return row % height && start() / build.bus == covered[plane]; }
    // And lies in it, so that nothing is to be read.
    bool is_there() const { return shares() && last_word() == covered[plane] && !ends(); }

    void ask() {
        const bool last_plane = plane == 0, last_row = row + 1 == block();
        if (!is_there()) {
            const bool skips = shares() && last_word() != covered[plane];
            address = skips ? (covered[plane] + 1) * build.bus : start();
            left = last_word() - address / build.bus + 1;
            working = true;
            tag_slot = ask_slot;
            tag_fills = ends();
        }
        const bool chunk_ends = ends();
        covered[plane] = last_word();
        if (begins) {
            claimed[ask_slot] = 1;
            chunk_groups[ask_slot] = count();
            chunk_turns[ask_slot] = (block() + height - 1) / height;
        }
        begins = chunk_ends;
        plane = last_plane ? first_plane() : (plane + 1) % planes_count;
        if (last_plane) ++row;
        if (!chunk_ends) return;
        ask_slot = (ask_slot + 1) % int(build.slots);
        row = 0;
        first += count();
        if (first < groups) return;
        first = 0;
        top += height * turns;
        if (top < rows) return;
        top = 0;
        if (++pass == passes || keeps) active = false;
    }
};

struct Tile {
    bool valid = false, last = false;
    int64_t rows = 0;
};

struct Core {
    const Build& build;
    const Product& product;
    // The loader.
    bool loading = false;
    int load_buffer = 0;
    int64_t load_group = 0, load_column = 0, load_left;
    bool full[2] = {false, false};
    // The sequencer.
    bool job = false, running = false;
    int buffer = 0;
    int64_t chain = 0, turn = 0, group = 0, columns_left, block_left, rows_left, groups;
    std::deque<Tile> pipe;
    // Results: tiles that wait, by slot.
    std::vector<Tile> slots;
    int fill = 0, drain = 0;
    int64_t row = 0;
    bool reported = false;

    Core(const Build& b, const Product& p)
        : build{b}, product{p}, load_left{p.n}, columns_left{p.n}, block_left{p.m},
          rows_left{p.m}, groups{p.k / b.group},
          pipe(size_t(1 + b.depth + 1 + b.chains)), slots(size_t(std::max<int64_t>(2, b.chains))) {}

    bool stepping() const { return !pipe.back().valid || !slots[fill].valid; }
    bool room() const { return loading && !full[load_buffer]; }
    bool wanted() const { return rows_left != 0; }
    bool may_issue() const {
        const bool starts = chain == 0 && group == 0;
        return running && stepping() && (starts || turn == chain) && full[buffer];
    }
    const Tile& oldest() const { return slots[drain]; }
    bool gives() const { return oldest().valid && !(oldest().last && reported); }

    void step(bool starts, bool act, bool weight, bool taken) {
        const bool steps = stepping(), take = weight && room();
        const bool issue = may_issue() && (act || !wanted());
        // Results leave, and come.
        const bool moved = gives() && taken;
        const bool final = row + 1 == oldest().rows;
        const bool comes = pipe.back().valid && !slots[fill].valid;
        const Tile incoming = pipe.back();
        reported = moved && final && oldest().last;
        if (comes) {
            slots[fill] = incoming;
            fill = (fill + 1) % int(slots.size());
        }
        if (moved) row = final ? 0 : row + 1;
        if (moved && final) {
            slots[drain].valid = false;
            drain = (drain + 1) % int(slots.size());
        }
        // The sequencer.
        Tile tile;
        int released = -1;
        bool job_done = false;
        const bool begins = chain == 0 && group == 0;
        if (steps) turn = (turn + 1) % build.chains;
        if (issue) {
            const bool chain_ends = chain == build.chains - 1, group_ends = group == groups - 1;
            const bool last_rows = rows_left <= build.rows;
            const bool last_columns = columns_left <= build.columns;
            const int64_t remaining = last_rows ? 0 : rows_left - build.rows;
            tile.valid = group_ends && wanted();
            tile.rows = last_rows ? rows_left : build.rows;
            tile.last = last_rows && last_columns && tile.valid;
            if (begins) turn = 1 % build.chains;
            chain = chain_ends ? 0 : chain + 1;
            rows_left = chain_ends ? block_left : remaining;
            if (chain_ends) group = group_ends ? 0 : group + 1;
            if (chain_ends && group_ends) {
                block_left = rows_left = remaining;
                if (last_rows) {
                    released = buffer;
                    buffer ^= 1;
                    columns_left -= build.columns;
                    block_left = rows_left = product.m;
                    if (last_columns) running = false, job_done = true;
                }
            }
        } else if (!running) {
            running = job;
        }
        if (job_done) job = false;
        if (steps) {
            pipe.pop_back();
            pipe.push_front(tile);
        }
        // The loader.
        if (released >= 0) full[released] = false;
        if (take) {
            const bool row_ends = load_group == groups - 1;
            load_group = row_ends ? 0 : load_group + 1;
            if (row_ends) {
                load_left -= build.weight_rows;
                load_column += build.weight_rows;
                if (load_left <= 0 || load_column == build.columns) {
                    full[load_buffer] = true;
                    load_buffer ^= 1;
                    load_column = 0;
                    loading = load_left > 0;
                }
            }
        }
        if (starts) loading = job = true;
    }
};

// Rows of results that are not packed.
struct Results {
    const Build& build;
    const Product& product;
    bool active = false;
    int64_t row = 0, panel = 0;

    Piece piece(bool result) const {
        const int64_t columns = std::min(build.columns, product.n - panel * build.columns);
        return {active && result,
                product.out + row * product.out_pitch + panel * build.columns * product.value_bytes,
                columns * product.value_bytes};
    }

    void step(bool starts, bool taken) {
        if (taken && ++row == product.m) {
            row = 0;
            if (++panel * build.columns >= product.n) active = false;
        }
        if (starts) active = true;
    }
};

// The master that writes.
struct Writer {
    const Build& build;
    int64_t left = 0, burst = 0, address = 0, pending = 0;
    bool waits = false, front = false, spare = false;
    int64_t words = 0;                 // at the memory, their address not
    std::deque<Burst> writes, answers;
    Burst header{};
    bool answer = false, held = false, word_first = false;

    // A word that waited comes before all reads.
    void drive(Memory& memory) { word_first = held && memory.spend(); }

    bool idle() const { return left == 0 && burst == 0; }
    bool busy() const { return !idle() || pending != 0; }

    void step(Memory& memory, int64_t clock, const Piece& piece, int64_t& written) {
        const bool w_ready = word_first || (!held && memory.credit >= double(build.bus));
        if (!answer && !answers.empty() && answers.front().due <= clock) answer = true;
        // The memory takes an address, then a word, and answers what is complete.
        if (waits) writes.push_back(header);
        const bool word = front && w_ready;
        if (word && !word_first) memory.credit -= double(build.bus);
        words += word;
        held = front && !w_ready;
        while (!writes.empty() && words) {
            --words;
            if (++writes.front().done == writes.front().beats) {
                writes.front().due = clock + 1 + memory.latency;
                answers.push_back(writes.front());
                writes.pop_front();
            }
        }
        const bool answered = answer;
        if (answered) {
            answer = false;
            answers.pop_front();
        }
        // The master.
        const bool sent = burst && !spare, takes = idle() && piece.valid;
        const bool issue = left && !burst && !waits && pending != OWED_WRITES;
        if (w_ready || !front) {
            front = spare || burst;
            spare = false;
        } else if (!spare) {
            spare = burst;
        }
        waits = issue;
        if (sent) --burst;
        if (issue) {
            const int64_t beats = next_burst(address, left, build.bus);
            header = {beats, 0, 0, -1, false};
            burst = beats;
            left -= beats;
            address = address / build.bus * build.bus + beats * build.bus;
        }
        pending += int(issue) - int(answered);
        if (takes) {
            address = piece.address;
            left = (address % build.bus + piece.bytes + build.bus - 1) / build.bus;
            written += piece.bytes;
        }
    }
};

Counts run(const Build& build, const Product& product, int64_t latency, double rate) {
    const int64_t groups = product.k / build.group;
    Memory memory{rate > 0 ? rate : 1e9, 0, latency, build.bus};
    memory.credit = 1e18;
    memory.earn();
    const bool gemm = product.operation == GEMM, encodes = product.operation == ENCODE;
    const bool packs = !gemm || product.packed;
    Fetcher acts{build, product.acts, build.act_planes, build.rows, build.chains, product.m, groups,
                 (product.n + build.columns - 1) / build.columns, build.chunk};
    Fetcher weights{build, product.weights, build.weight_planes, build.weight_rows, 1, product.n,
                    groups, 1, build.chunk};
    const Plane source{product.acts[0].address, product.acts[0].pitch, build.unit};
    Fetcher values{build, &source, 1, 1, 1, product.m,
                   product.k * product.value_bytes / build.unit, 1, build.value_chunk};
    Fetcher& first = gemm ? acts : values;
    Core core{build, product};
    const int64_t parts = 2 * build.group / build.unit;      // beats of a group
    // Weights without metadata are quantized like activations: there is nothing to search.
    Engine engine{encodes && build.weight_planes == 3, !gemm && product.value_bytes == 4
                      && (encodes ? build.wide_encoder : build.wide_quantizer), parts};
    const int64_t pitch = product.out_scales_pitch;
    PlaneSets sets{product.m, (gemm ? product.n : product.k) / build.group, build.gather, gemm,
                   int(encodes ? build.weight_planes : build.act_planes),
                   {product.out, product.out_scales, product.out_meta}, {build.code_bytes, 1, 1},
                   {product.out_pitch, pitch, pitch},
                   {product.out, product.out_scales, product.out_meta}};
    Results results{build, product};
    Writer writer{build};
    Counts counts{};
    int64_t part = 0;        // of a row of results that is packed
    int64_t before = -1, since = 0;
    bool waiting = true, reported = !gemm;
    for (int64_t clock = 0;; ++clock) {
        memory.earn();
        writer.drive(memory);
        if (memory.last) first.drive(memory, clock, 0), weights.drive(memory, clock, 1);
        else weights.drive(memory, clock, 1), first.drive(memory, clock, 0);
        const bool done = reported && !waiting && !results.active && !sets.active && !writer.busy();
        const bool act_ready = core.may_issue() && core.wanted(), weight_ready = core.room();
        const bool result = core.gives();
        const bool part_taken = gemm && packs && result && engine.takes_values();
        const bool result_ready = packs ? engine.takes_values() && part == parts - 1
                                        : results.active && writer.idle();
        ++counts.clocks;
        counts.work += act_ready && acts.there;
        counts.wait_acts += act_ready && !acts.there;
        counts.wait_weights += weight_ready && !weights.there;
        counts.wait_results += result && !result_ready;
        if (done) return counts;
        const int64_t progress = counts.read + counts.written + counts.work;
        if (progress != before) before = progress, since = clock;
        if (clock - since > PATIENCE) return Counts{};
        reported |= core.reported;
        const bool act = acts.there, weight = weights.there, value = values.there;
        const bool taken = writer.idle();
        writer.step(memory, clock, packs ? sets.piece() : results.piece(result), counts.written);
        if (gemm) {
            acts.step(memory, clock, waiting, act_ready, counts.read);
            weights.step(memory, clock, waiting, weight_ready, counts.read);
            core.step(waiting, act, weight, result_ready);
        } else {
            values.step(memory, clock, waiting, engine.ready(), counts.read);
        }
        if (packs) {
            const bool group = engine.output.front, group_taken = group && sets.ready();
            engine.step(gemm ? result : value, group_taken);
            sets.step(waiting, group, taken);
            if (part_taken) part = (part + 1) % parts;
        } else {
            results.step(waiting, result && result_ready);
        }
        waiting = false;
    }
}

}  // namespace

extern "C" __attribute__((visibility("default")))
void cycles_run(const Build* build, const Product* product, int64_t latency, double rate,
                Counts* counts) {
    *counts = run(*build, *product, latency, rate);
}
