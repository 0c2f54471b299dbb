// The live charts: the last three minutes, drawn by uPlot in the colours of the page.

/* global uPlot */
const KEEP = 180;
const HEIGHT = 200;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const SERIES = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7"];

/** One chart; `stacked` draws its series on top of each other, `unit` stands behind its values. */
export class LiveChart {
  constructor(place, { stacked = false, unit = "", describe }) {
    this.place = place;
    this.stacked = stacked;
    this.unit = unit;
    this.describe = describe;
    this.clear();
    place.setAttribute("role", "img");
    new ResizeObserver(() => this.plot?.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  clear() {
    this.times = [];
    this.series = new Map();
    this.draw();
  }

  /** A point in time (s since the epoch) and the value of each series by name; what has none yet begins now. */
  add(time, values) {
    let grown = false;
    for (const name of Object.keys(values)) {
      if (!this.series.has(name)) {
        this.series.set(name, this.times.map(() => null));
        grown = true;
      }
    }
    this.times.push(time);
    for (const [name, points] of this.series) points.push(values[name] ?? null);
    if (this.times.length > KEEP) {
      this.times.shift();
      for (const points of this.series.values()) points.shift();
    }
    if (grown || !this.plot) this.draw();
    else this.plot.setData(this.data());
    this.place.setAttribute("aria-label", this.describe(values));
  }

  data() {
    const rows = [...this.series.values()];
    if (!this.stacked) return [this.times, ...rows];
    const tops = [];
    rows.forEach((row, at) => {
      tops.push(row.map((value, i) => (value === null ? null : value + (at ? tops[at - 1][i] ?? 0 : 0))));
    });
    return [this.times, ...tops.reverse()]; // the highest first, so that lower ones are painted over it
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.series.size || this.place.clientWidth === 0) return;
    const names = [...this.series.keys()];
    const shown = this.stacked ? [...names].reverse() : names;
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    this.plot = new uPlot({
      width: this.place.clientWidth,
      height: HEIGHT,
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [{ ...axis, grid: { show: false } }, { ...axis, size: 56 }],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      series: [{}, ...shown.map((name) => this.line(name, names.indexOf(name)))],
    }, this.data(), this.place);
  }

  line(name, at) {
    const stroke = colour(SERIES[at % SERIES.length]);
    return {
      label: name,
      stroke: this.stacked ? colour("--surface") : stroke,
      fill: this.stacked ? stroke : undefined,
      width: this.stacked ? 1 : 2,
      points: { show: false },
      value: (_, value, series, i) => {
        const own = i === null || i === undefined ? this.series.get(name)?.at(-1) : this.series.get(name)?.[i];
        return own === null || own === undefined ? "–" : `${Number(own.toPrecision(3))}${this.unit}`;
      },
    };
  }
}
