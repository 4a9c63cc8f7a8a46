"use strict";
// The page's script. What it computes with is compiled from the golden model; here bits are unpacked and drawn.

const data = JSON.parse(document.getElementById("data").textContent);
const number = (value) => (typeof value === "string" ? Number(value.replace("inf", "Infinity")) : value);
const COUNT = 32;

// Open the module; returns quantize(format, Float32Array of whole groups) -> planes and values.
async function open_arithmetic() {
  const bytes = Uint8Array.from(atob(data.module), (letter) => letter.charCodeAt(0));
  // Nothing of the system is called by what we call; the C library's start may look for it.
  const none = new Proxy({}, { get: () => () => 0 });
  const { instance } = await WebAssembly.instantiate(bytes, { wasi_snapshot_preview1: none, env: none });
  const { memory, malloc, m2xfp_run, m2xfp_largest, _initialize } = instance.exports;
  if (_initialize) _initialize();
  const sizes = {};
  const room = (name, size) => {
    if (!(sizes[name]?.size >= size)) sizes[name] = { size, at: malloc(size) };
    return sizes[name].at;
  };
  const taken = (at, size) => new Uint8Array(memory.buffer, at, size).slice();
  const largest = (x) => {
    const at = room("x", 4 * x.length);
    new Float32Array(memory.buffer, at, x.length).set(x);
    const bits = m2xfp_largest(2, BigInt(x.length), at);
    return new Float32Array(new Int32Array([bits]).buffer)[0];
  };
  const quantize = (format, x) => {
    const groups = x.length / format.group;
    let unit = 0;
    let level = null;
    if (format.reach !== null) {
      level = Math.fround(largest(x) / format.reach) || 1;
      unit = room("unit", 4);
    }
    const plan = room("plan", 8 * format.plan.length);
    const at = {
      x: room("x", 4 * x.length),
      codes: room("codes", groups * format.code_bytes),
      scales: room("scales", groups * format.scale_bytes),
      meta: room("meta", Math.max(1, groups * format.meta_bytes)),
      out: room("out", 4 * x.length),
    };
    if (unit) new Float32Array(memory.buffer, unit, 1)[0] = level;
    new Float64Array(memory.buffer, plan, format.plan.length).set(format.plan);
    new Float32Array(memory.buffer, at.x, x.length).set(x);
    m2xfp_run(plan, 0, 2, BigInt(groups), unit, at.x, at.codes, at.scales, at.meta, 0);
    m2xfp_run(plan, 1, 2, BigInt(groups), unit, at.x, 0, 0, 0, at.out);
    return {
      level,
      codes: taken(at.codes, groups * format.code_bytes),
      scales: taken(at.scales, groups * format.scale_bytes),
      meta: taken(at.meta, groups * format.meta_bytes),
      values: new Float32Array(taken(at.out, 4 * x.length).buffer),
    };
  };
  return { quantize };
}

// Fields of `bits` bits, little-endian, from bytes.
function unpacked(bytes, bits, count) {
  const found = [];
  for (let i = 0; i < count; ++i) {
    let field = 0;
    for (let b = 0; b < bits; ++b) {
      const place = i * bits + b;
      field |= ((bytes[place >> 3] >> (place & 7)) & 1) << b;
    }
    found.push(field);
  }
  return found;
}

const binary = (field, bits) => field.toString(2).padStart(bits, "0");
const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(6))) : String(value));

// Code bits with their fields apart.
function spelled(code, format) {
  const text = binary(code, format.element_bits);
  let place = 0;
  return format.fields.map((width) => text.slice(place, (place += width))).filter((part) => part).join(" ");
}

// The scales of a group in words.
function scale_text(bytes, format) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  if (format.affine) {
    return `${short(view.getFloat32(0, true))}, offset ${short(view.getFloat64(4, true))}`;
  }
  if (!format.scales) return `${short(view.getFloat32(0, true))} (${hex})`;
  return [...bytes].map((byte) => `${short(number(format.scales[byte]))} (0x${byte.toString(16)})`).join(" / ");
}

// Which lanes of a group metadata changes.
function refined(codes, meta, format) {
  if (!format.subgroup) return codes.map(() => false);
  const top = (1 << (format.element_bits - 1)) - 1;
  return codes.map((code, lane) => {
    const first = Math.floor(lane / format.subgroup) * format.subgroup;
    if (format.metadata !== "elem-em") return meta[Math.floor(lane / format.subgroup)] > 0;
    const peers = codes.slice(first, first + format.subgroup).map((each) => each & top);
    return peers.indexOf(Math.max(...peers)) === lane - first;
  });
}

// What a format makes of the values: one entry a lane, and heads of groups.
function shown(format, x, quantize) {
  const result = quantize(format, x);
  const lanes = [];
  const groups = [];
  for (let g = 0; g < x.length / format.group; ++g) {
    const part = (plane, size) => plane.slice(g * size, (g + 1) * size);
    const codes = unpacked(part(result.codes, format.code_bytes), format.element_bits, format.group);
    const fields = format.subgroup ? format.group / format.subgroup : 0;
    const meta = unpacked(part(result.meta, format.meta_bytes), format.metadata_bits, fields);
    const blue = refined(codes, meta, format);
    codes.forEach((code, lane) => {
      const value = result.values[g * format.group + lane];
      lanes.push({ bits: spelled(code, format), value, refined: blue[lane] });
    });
    groups.push({
      scale: scale_text(part(result.scales, format.scale_bytes), format),
      meta: meta.map((field) => binary(field, format.metadata_bits)).join(" "),
    });
  }
  const squares = lanes.map(({ value }, lane) => (value - x[lane]) ** 2);
  return { level: result.level, lanes, groups, squares, sum: squares.reduce((a, b) => a + b, 0) };
}

function draw_table(x, formats, quantize) {
  const columns = formats.map((format) => ({ format, ...shown(format, x, quantize) }));
  const most = Math.max(...columns.flatMap((column) => column.squares.filter(Number.isFinite)), 1e-300);
  const cell = (column, lane) => {
    const { bits, value, refined } = column.lanes[lane];
    const width = Number.isFinite(column.squares[lane]) ? 40 * Math.sqrt(column.squares[lane] / most) : 40;
    return `<td${refined ? ' class="refined"' : ""}><span class="bits">${bits}</span> <span class="value">${short(value)}</span>` +
      `<span class="room"><span class="error" style="width:${width}px"></span></span></td>`;
  };
  const head = columns.map(({ format, level, groups }) =>
    `<th>${format.name}<br>${format.bits_per_value} bits a value` +
    (level === null ? "" : `<br>tensor scale ${short(level)}`) +
    groups.map((group) => `<br>scale ${group.scale}` + (group.meta ? `<br>metadata ${group.meta}` : "")).join("") +
    "</th>").join("");
  const power = x.reduce((sum, value) => sum + value * value, 0);
  const decibels = (sum) => {
    if (!Number.isFinite(sum)) return "not finite";
    return sum > 0 ? `${(10 * Math.log10(power / sum)).toFixed(1)} dB` : "exact";
  };
  const rows = [...x].map((value, lane) =>
    `<tr${lane && lane % 8 === 0 ? ' class="start"' : ""}><th>${lane}</th><td>${short(value)}</td>` +
    columns.map((column) => cell(column, lane)).join("") + "</tr>").join("");
  document.getElementById("table").innerHTML =
    `<thead><tr><th></th><th>value</th>${head}</tr></thead><tbody>${rows}</tbody><tfoot><tr><th></th><td>squared error</td>` +
    columns.map((column) => `<td>${short(column.sum)}, ${decibels(column.sum)}</td>`).join("") + "</tr></tfoot>";
}

// Values from text: numbers apart by spaces, commas or lines.
function parsed(text) {
  const words = text.split(/[\s,;[\]()]+/).filter((word) => word);
  const values = words.map((word) => number(/^[-+]?(inf|infinity|nan)$/i.test(word)
    ? word.toLowerCase().replace("infinity", "inf").replace("nan", "NaN") : Number(word)));
  const odd = words.find((word, i) => Number.isNaN(values[i]) && !/nan$/i.test(word));
  if (odd !== undefined) return { error: `"${odd}" is no number` };
  if (!values.length) return { error: "Type a value." };
  const x = new Float32Array(COUNT);
  x.set(values.slice(0, COUNT));
  const told = values.length === COUNT ? "" : values.length < COUNT
    ? `${values.length} values; the others are 0.` : `${values.length} values; the first ${COUNT} are shown.`;
  return { x, told };
}

const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
const SAMPLES = {
  normal: () => Array.from({ length: COUNT }, normal),
  outlier: () => Array.from({ length: COUNT }, (_, i) => normal() * (i === 11 ? 30 : 1)),
  ties: () => Array.from({ length: COUNT }, (_, i) => (i === 0 ? 6 : ((i % 13) / 4) * (i % 2 ? -1 : 1))),
  one: () => Array.from({ length: COUNT }, (_, i) => (i === 20 ? 1 : 0)),
  small: () => Array.from({ length: COUNT }, (_, i) => (i + 1) * 2 ** -130),
  nan: () => Array.from({ length: COUNT }, (_, i) => (i === 5 ? NaN : normal())),
};
const START = [0.7, -1.2, 0.05, 3.1, -0.4, 0.9, 2.2, -2.8, 0.3, 0.33, -0.6, 1.5, 1.45, -0.1, 0, 0.8,
  -5.7, 0.25, 1.1, -0.9, 0.45, -1.75, 2.5, 0.15, 0.02, -0.03, 0.07, -0.05, 0.01, 0.04, -0.06, 0.09];

async function start_values() {
  const { quantize } = await open_arithmetic();
  const text = document.getElementById("values");
  const chosen = new Set(data.formats.map((format, i) => (format.shown ? i : -1)).filter((i) => i >= 0));
  const update = () => {
    const { x, told, error } = parsed(text.value);
    document.getElementById("message").textContent = error ?? told;
    if (x) draw_table(x, data.formats.filter((_, i) => chosen.has(i)), quantize);
  };
  data.formats.forEach((format, i) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(i) });
    box.addEventListener("change", () => { chosen[box.checked ? "add" : "delete"](i); update(); });
    label.append(box, ` ${format.name}`);
    document.getElementById("formats").append(label);
  });
  document.querySelectorAll("[data-sample]").forEach((button) => button.addEventListener("click", () => {
    text.value = SAMPLES[button.dataset.sample]().map((value) => short(value)).join(" ");
    update();
  }));
  text.addEventListener("input", update);
  const given = new URLSearchParams(location.hash.slice(1)).get("values");
  text.value = given ?? START.join(" ");
  if (given !== null) data.formats.forEach((_, i) => chosen.add(i));
  update();
  return quantize;
}

const AXES = {
  area: "area, um2", path: "critical path, ns", flops: "flip-flops", energy: "energy a group, pJ",
  mac_energy: "energy a MAC, pJ", power: "power, mW", loss: "perplexity over unquantized, %",
};

function start_plot() {
  const choice = (name, options, picked) => {
    const select = document.getElementById(name);
    Object.entries(options).forEach(([value, text]) => select.append(new Option(text, value, false, value === picked)));
    select.addEventListener("change", draw);
    return select;
  };
  const libraries = [...new Set(data.points.map((point) => point.library))];
  const library = choice("library", Object.fromEntries(libraries.map((name) => [name, name])), "asap7");
  const across = choice("across", AXES, "area");
  const up = choice("up", AXES, "energy");
  const filter = document.getElementById("filter");
  filter.addEventListener("input", draw);
  function draw() {
    const kept = data.points.filter((point) => point.library === library.value &&
      `${point.unit} ${point.config}`.includes(filter.value.trim()) &&
      [across, up].every((axis) => point[axis.value] !== null && point[axis.value] !== undefined));
    const traces = [...new Set(kept.map((point) => point.unit))].map((unit) => {
      const own = kept.filter((point) => point.unit === unit);
      return {
        name: unit, mode: "markers", type: "scatter", marker: { size: 9 },
        x: own.map((point) => point[across.value]), y: own.map((point) => point[up.value]),
        customdata: own.map((point) => point.command), text: own.map((point) => `${point.unit} ${point.config}`),
        hovertemplate: "%{text}<br>%{x} / %{y}<br>%{customdata}<extra></extra>",
      };
    });
    // Of a logarithmic axis the digits between powers of ten are two thirds as large.
    const axis = (name) => (
      { title: { text: AXES[name] }, type: name === "loss" ? "linear" : "log", tickfont: { size: 16 } });
    Plotly.react("plot", traces, { xaxis: axis(across.value), yaxis: axis(up.value), margin: { t: 20 } },
      { displaylogo: false, responsive: true });
    document.getElementById("command").textContent = `${kept.length} points`;
  }
  draw();
  document.getElementById("plot").on("plotly_click", ({ points }) => {
    document.getElementById("command").textContent = points[0].customdata;
  });
}

start_plot();
const ready = start_values();
