// Memories of the FPGAs for several machines at once: each signal is a word with a bit, a lane, for
// each machine; packed arrays have the word last. Only what designs here use is modelled, and
// anything else is an elaboration error.

// iCE40 block RAM: 256 x 16, 512 x 8, 1024 x 4 or 2048 x 2 on each side (mode 0 to 3), read on the
// clock. Narrow words use every 2nd, 4th or 8th data pin, starting at pin 0, 1 or 3; the address
// bits from 8 up choose one of the row's bits behind each such pin. MASK keeps bits, in mode 0.
module SB_RAM40_4K #(
    parameter LANES = 1, READ_MODE = 0, WRITE_MODE = 0,
    parameter [255:0] INIT_0 = 0, INIT_1 = 0, INIT_2 = 0, INIT_3 = 0, INIT_4 = 0, INIT_5 = 0,
        INIT_6 = 0, INIT_7 = 0, INIT_8 = 0, INIT_9 = 0, INIT_A = 0, INIT_B = 0, INIT_C = 0,
        INIT_D = 0, INIT_E = 0, INIT_F = 0
) (
    input WCLK, RCLK,
    input [0:0][LANES-1:0] WE, WCLKE, RE, RCLKE,
    input [10:0][LANES-1:0] WADDR, RADDR,
    input [15:0][LANES-1:0] WDATA, MASK,
    output reg [15:0][LANES-1:0] RDATA
);
    function automatic [3:0] first_pin(input [1:0] mode);
        first_pin = mode == 3 ? 3 : mode == 2 ? 1 : 0;
    endfunction
    localparam WRITE_STEP = 1 << WRITE_MODE, READ_STEP = 1 << READ_MODE;
    localparam [4095:0] INIT = {INIT_F, INIT_E, INIT_D, INIT_C, INIT_B, INIT_A, INIT_9, INIT_8,
                                INIT_7, INIT_6, INIT_5, INIT_4, INIT_3, INIT_2, INIT_1, INIT_0};

    reg [15:0] memory [0:256*LANES-1];
    integer i, l, p, r;
    reg [10:0] address;
    reg [3:0] place;

    initial begin
        RDATA = 0;
        for (i = 0; i < 256 * LANES; i = i + 1) memory[i] = INIT[16 * (i % 256) +: 16];
    end

    always @(posedge WCLK)
        if (|(WE & WCLKE))
            for (l = 0; l < LANES; l = l + 1)
                if (WE[0][l] & WCLKE[0][l]) begin
                    for (p = 0; p < 11; p = p + 1) address[p] = WADDR[p][l];
                    for (p = 0; p < 16; p = p + WRITE_STEP) begin
                        place = p[3:0] + (4'(address >> 8) & 4'(WRITE_STEP - 1));
                        if (WRITE_MODE != 0 || !MASK[p][l])
                            memory[256 * l + 32'(address[7:0])][place] <=
                                WDATA[p[3:0] + first_pin(WRITE_MODE)][l];
                    end
                end

    reg [10:0] read_address;
    reg [3:0] read_place;
    integer a, q;
    always @(posedge RCLK)
        if (|(RE & RCLKE))
            for (r = 0; r < LANES; r = r + 1)
                if (RE[0][r] & RCLKE[0][r]) begin
                    for (a = 0; a < 11; a = a + 1) read_address[a] = RADDR[a][r];
                    for (q = 0; q < 16; q = q + READ_STEP) begin
                        read_place = q[3:0] + (4'(read_address >> 8) & 4'(READ_STEP - 1));
                        RDATA[q[3:0] + first_pin(READ_MODE)][r] <=
                            memory[256 * r + 32'(read_address[7:0])][read_place];
                    end
                end
endmodule

// ECP5 block RAM: 16 Kbit and parity, two ports, words of 1, 2, 4, 9 or 18 bits, the same on both.
// A writing port puts out what was there. Each 20 bits of the initial contents hold a word of 18.
module DP16KD #(
    parameter LANES = 1, DATA_WIDTH_A = 18, DATA_WIDTH_B = 18,
    parameter [20479:0] INITIAL = 0
) (
    input CLKA, CLKB,
    input [0:0][LANES-1:0] CEA, CEB, WEA, WEB,
    input [13:0][LANES-1:0] ADA, ADB,
    input [17:0][LANES-1:0] DIA, DIB,
    output reg [17:0][LANES-1:0] DOA, DOB
);
    localparam W = DATA_WIDTH_A;
    localparam SHIFT = W == 18 ? 4 : W == 9 ? 3 : W == 4 ? 2 : W == 2 ? 1 : 0;
    localparam DEPTH = 16384 >> SHIFT;
    generate
        if (DATA_WIDTH_B != W || (W < 9 && INITIAL != 0)) begin : unsupported
            $error("DP16KD: widths %0d and %0d are not modelled", W, DATA_WIDTH_B);
        end
    endgenerate

    reg [W-1:0] memory [0:DEPTH*LANES-1];
    integer i, l, b;
    integer row;
    reg [13:0] address;
    reg [W-1:0] word, old;

    initial begin
        DOA = 0;
        DOB = 0;
        for (i = 0; i < DEPTH * LANES; i = i + 1)
            memory[i] = W == 18 ? W'(INITIAL[20 * (i % DEPTH) +: 18])
                      : W == 9 ? W'(INITIAL[20 * (i % DEPTH / 2) + 9 * (i % 2) +: 9]) : '0;
    end

    always @(posedge CLKA) begin
        if (|CEA)
            for (l = 0; l < LANES; l = l + 1)
                if (CEA[0][l]) begin
                    for (b = 0; b < 14; b = b + 1) address[b] = ADA[b][l];
                    for (b = 0; b < W; b = b + 1) word[b] = DIA[b][l];
                    row = DEPTH * l + 32'(address >> SHIFT);
                    // Words of 18 bits have their halves enabled by the low address bits.
                    old = memory[row];
                    for (b = 0; b < W; b = b + 1) DOA[b][l] <= old[b];
                    if (W == 18 && !address[0]) word[W/2-1:0] = old[W/2-1:0];
                    if (W == 18 && !address[1]) word[W-1:W/2] = old[W-1:W/2];
                    if (WEA[0][l]) memory[row] <= word;
                end
    end

    integer m, d;
    integer line;
    reg [13:0] place;
    reg [W-1:0] value, earlier;
    always @(posedge CLKB) begin
        if (|CEB)
            for (m = 0; m < LANES; m = m + 1)
                if (CEB[0][m]) begin
                    for (d = 0; d < 14; d = d + 1) place[d] = ADB[d][m];
                    for (d = 0; d < W; d = d + 1) value[d] = DIB[d][m];
                    line = DEPTH * m + 32'(place >> SHIFT);
                    earlier = memory[line];
                    for (d = 0; d < W; d = d + 1) DOB[d][m] <= earlier[d];
                    if (W == 18 && !place[0]) value[W/2-1:0] = earlier[W/2-1:0];
                    if (W == 18 && !place[1]) value[W-1:W/2] = earlier[W-1:W/2];
                    if (WEB[0][m]) memory[line] <= value;
                end
    end
endmodule

// A DP16KD of 36 bits: port A writes, with an enable for each byte of nine, and port B reads.
module DP16KD_36 #(
    parameter LANES = 1,
    parameter [20479:0] INITIAL = 0
) (
    input CLKA, CLKB,
    input [0:0][LANES-1:0] CEA, CEB, WEA,
    input [13:0][LANES-1:0] ADA, ADB,
    input [17:0][LANES-1:0] DIA, DIB,
    output reg [17:0][LANES-1:0] DOA, DOB
);
    localparam DEPTH = 512;
    generate
        if (INITIAL != 0) begin : unsupported
            $error("DP16KD_36: contents are not modelled");
        end
    endgenerate

    reg [35:0] memory [0:DEPTH*LANES-1];
    integer i, l, b;
    integer row;
    reg [13:0] address;
    reg [35:0] word;

    initial begin
        DOA = 0;
        DOB = 0;
        for (i = 0; i < DEPTH * LANES; i = i + 1) memory[i] = 0;
    end

    always @(posedge CLKA) begin
        if (|CEA)
            for (l = 0; l < LANES; l = l + 1)
                if (CEA[0][l] & WEA[0][l]) begin
                    for (b = 0; b < 14; b = b + 1) address[b] = ADA[b][l];
                    row = DEPTH * l + 32'(address >> 5);
                    word = memory[row];
                    for (b = 0; b < 18; b = b + 1) begin
                        if (address[b / 9]) word[b] = DIA[b][l];
                        if (address[2 + b / 9]) word[18 + b] = DIB[b][l];
                    end
                    memory[row] <= word;
                end
    end

    integer m, d;
    reg [13:0] place;
    reg [35:0] value;
    always @(posedge CLKB) begin
        if (|CEB)
            for (m = 0; m < LANES; m = m + 1)
                if (CEB[0][m]) begin
                    for (d = 0; d < 14; d = d + 1) place[d] = ADB[d][m];
                    value = memory[DEPTH * m + 32'(place >> 5)];
                    for (d = 0; d < 18; d = d + 1) begin
                        DOA[d][m] <= value[d];
                        DOB[d][m] <= value[18 + d];
                    end
                end
    end
endmodule
