// Clocks of what packs values: the engines, and what gathers packed groups and writes them plane by
// plane. Part of the model in cycles.cpp, with its rules.

#pragma once

#include <algorithm>
#include <cstdint>

// The beats of a group wait for its scale, while the next group fills the places that they leave.
struct Store {
    int64_t beats, fill = 0, drain = 0;
    bool draining = false;

    bool ready(bool free) const { return !draining || fill != drain || free; }
    bool last() const { return drain == beats - 1; }
    void step(bool accept, bool taken) {
        const bool fills = accept && fill == beats - 1;
        if (taken) {
            if (last()) draining = false;
            drain = last() ? 0 : drain + 1;
        }
        if (accept) fill = fills ? 0 : fill + 1;
        if (fills) draining = true;
    }
};

// Behind an engine: an entry every other clock, or two entries where a group takes a clock.
struct Output {
    bool two, front = false, spare = false;

    bool ready() const { return two ? !spare : !front; }
    void step(bool valid, bool taken) {
        if (!two) {
            front = front ? !taken : valid;
        } else if (taken || !front) {
            front = spare || valid;
            spare = false;
        } else if (!spare) {
            spare = valid;
        }
    }
};

// A quantizer, or an encoder that tries three offsets one after the other.
struct Engine {
    bool encodes, halves;    // halves: two beats from memory make one
    int64_t beats;           // of a group
    bool has_half = false;
    Store store{beats};
    Output output{!encodes && beats == 1};
    // The quantizer's last stage.
    bool complete = false;
    // The encoder: a beat that is searched, four stages behind it, sums, and what is encoded.
    static constexpr int STAGES = 4;
    bool aligned = false, ends = false, stage[STAGES] = {}, summed = false, encoding = false;
    int64_t phase = 0, encoded = 0;

    bool group_leaves() const { return encodes ? encoding && encoded == beats - 1 : complete; }
    bool advances() const {
        return !encodes && beats == 1 ? output.ready() : !group_leaves() || output.ready();
    }
    bool drains() const { return advances() && (!encodes || !aligned || phase == 2); }
    bool takes_values() const { return store.ready(drains()); }      // a whole beat
    bool first_half() const { return halves && !has_half; }
    bool ready() const { return takes_values() || first_half(); }

    void step(bool valid, bool out_taken) {
        const bool advance = advances(), free = drains(), leaves = group_leaves();
        const bool accept = valid && !first_half() && takes_values();
        if (valid && ready()) has_half = first_half();
        if (advance && encodes) {
            if (summed) encoding = true, encoded = 0;
            else if (encoding) encoding = encoded != beats - 1, ++encoded;
            summed = stage[STAGES - 1];
            for (int n = STAGES - 1; n; --n) stage[n] = stage[n - 1];
            stage[0] = aligned && ends && phase == 2;
            ++phase;
            if (free) aligned = store.draining, ends = store.last(), phase = 0;
        } else if (advance) {
            complete = store.draining && store.last();
        }
        store.step(accept, store.draining && free);
        output.step(leaves, out_taken);
    }
};

struct Piece {               // bytes for the master that writes
    bool valid;
    int64_t address, bytes;
};

// Groups of a row, or one of a column, are gathered, and then written plane by plane.
struct PlaneSets {
    int64_t rows, groups, gather;
    bool down;
    int planes;              // that the format has
    int64_t here[3], size[3], pitch[3], start[3];
    bool active = false, filling = false, whole = false, sending = false;
    bool closes = false, final = false, sent_closes = false, sent_final = false;
    int64_t place = 0, count = 0, sent_count = 0, inner_left, outer_left;
    int plane = 0;

    int64_t inner() const { return down ? rows : groups; }
    bool ready() const { return filling && !whole; }
    // Scales and metadata lie apart; a format without metadata writes two planes.
    Piece piece() const { return {sending, here[plane], sent_count * size[plane]}; }

    void step(bool starts, bool group, bool taken) {
        const bool moves = whole && !sending, takes = group && ready();
        if (sending && taken) {
            const int64_t below = start[plane] + (down ? size[plane] : pitch[plane]);
            here[plane] = sent_closes ? below : here[plane] + (down ? pitch[plane]
                                                                     : piece().bytes);
            if (sent_closes) start[plane] = below;
            if (plane == planes - 1) {
                sending = false;
                if (sent_final) active = false;
            }
            ++plane;
        }
        if (moves) {
            whole = false;
            sending = true;
            plane = 0;
            sent_count = count, sent_closes = closes, sent_final = final;
        }
        if (takes) {
            const bool row_ends = inner_left == 1;
            if (row_ends || place == gather - 1 || down) {
                whole = true;
                count = place + 1;
                closes = row_ends;
                final = row_ends && outer_left == 1;
                place = 0;
            } else {
                ++place;
            }
            --inner_left;
            if (row_ends) {
                inner_left = inner();
                filling = outer_left != 1;
                --outer_left;
            }
        }
        if (starts) {
            active = filling = true;
            inner_left = inner();
            outer_left = down ? groups : rows;
        }
    }
};
