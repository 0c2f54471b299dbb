// Draws the charts of a comparison from the document in the page, with uPlot.
"use strict";
(() => {
  const found = JSON.parse(document.getElementById("comparison").textContent);
  const same = found.models[0].name === found.models[1].name;
  const names = found.models.map((model) => (same ? `${model.name}/${model.version}` : model.name));
  const rows = [...new Set(found.cells.map((cell) => cell.rows))];
  const connections = [...new Set(found.cells.map((cell) => cell.connections))];
  const cellOf = (row, count) => found.cells.find((cell) => cell.rows === row && cell.connections === count);
  const HEIGHT = 260;
  let drawn = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) =>
    value === null || value === undefined ? "–" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));

  // Axes and legend in the page's colours; the horizontal one says the names of places.
  const options = (labels, what, series, more = {}) => {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const bottom = labels
      ? { ...axis, splits: labels.map((_, place) => place), values: (_, splits) => splits.map((place) => labels[place] ?? "") }
      : { ...axis, values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))) };
    return {
      height: HEIGHT,
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: false, range: labels ? [-0.5, labels.length - 0.5] : undefined }, y: { range: (_, __, most) => [0, most * 1.08 || 1] } },
      axes: [bottom, { ...axis, size: 64, values: (_, splits) => splits.map(short) }],
      series: [{ label: what, value: (_, place) => (place === null ? "–" : labels ? labels[place] : short(place)) }, ...series],
      ...more,
    };
  };

  const draw = (id, make) => {
    const figure = document.getElementById(id);
    const made = make();
    if (!made) return;
    figure.hidden = false;
    const target = figure.querySelector(".chart");
    drawn.push([new uPlot({ ...made.options, width: Math.max(240, target.clientWidth) }, made.data, target), target]);
  };

  // A line for each model and number of connections, its middle half shaded.
  const lines = (value, extra, what) => {
    const series = [], bands = [], data = [rows.map((_, place) => place)];
    connections.forEach((count, nth) => {
      ["a", "b"].forEach((side, model) => {
        const label = connections.length > 1 ? `${names[model]}, ${count} conn.` : names[model];
        const stroke = colour(`--${side}`);
        const width = nth + 1.5;
        const contrasts = rows.map((row) => [cellOf(row, count), row]).map(([cell, row]) => value(cell, row, side));
        data.push(contrasts.map((each) => each.high), contrasts.map((each) => each.low), contrasts.map((each) => each.median));
        const edge = { stroke: "transparent", points: { show: false }, label: "", class: "edge", value: () => "" };
        series.push({ ...edge }, { ...edge }, { label, stroke, width, points: { show: true, size: model ? 9 : 6, fill: model ? colour("--paper") : stroke }, value: (_, y) => short(y) });
        bands.push({ series: [series.length - 2, series.length - 1], fill: colour(`--wash-${side}`) });
        if (extra && nth === 0) {
          data.push(rows.map((row) => extra(cellOf(row, count), row, side).median));
          series.push({ label: `${label}, p99`, stroke, width: 1.5, dash: [4, 4], points: { show: false }, value: (_, y) => short(y) });
        }
      });
    });
    const labels = rows.map((row) => `${row} row${row === 1 ? "" : "s"}`);
    return { options: options(labels, what, series, { bands }), data };
  };

  const bars = (labels, sides, what) => {
    const series = ["a", "b"].map((side, model) => ({
      label: names[model], stroke: colour(`--${side}`), fill: colour(`--wash-${side}`), width: 2,
      paths: uPlot.paths.bars({ size: [0.35, 90], align: model ? 1 : -1 }), points: { show: false }, value: (_, y) => short(y),
    }));
    return { options: options(labels, what, series), data: [labels.map((_, place) => place), ...sides] };
  };

  const memory = () => {
    const shown = found.figures.filter((figure) => figure.unit === "B");
    if (!shown.length) return null;
    const sides = ["a", "b"].map((side) => shown.map((figure) => figure.contrast[side].median / 1e6));
    const titles = { memory_idle_bytes: "loaded", memory_bytes: "after requests", memory_peak_bytes: "peak", gpu_memory_bytes: "GPU", artifact_bytes: "files" };
    return bars(shown.map((figure) => titles[figure.name] ?? figure.title), sides, "MB");
  };

  const distribution = () => {
    const { bounds, a, b } = found.cells[0].latencies_ms;
    const share = (counts) => {
      const all = counts.reduce((sum, each) => sum + each, 0) || 1;
      return counts.map((each) => (100 * each) / all);
    };
    const series = ["a", "b"].map((side, model) => ({
      label: `${names[model]} %`, stroke: colour(`--${side}`), fill: colour(`--wash-${side}`), width: 1.5, dash: model ? [6, 3] : undefined,
      paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, value: (_, y) => short(y),
    }));
    const made = options(null, "ms", series);
    const marks = [0, 0.2, 0.4, 0.6, 0.8, 1].map((part) => bounds[Math.round(part * (bounds.length - 1))]);
    made.scales.x = { time: false, distr: 3, range: [bounds[0], bounds[bounds.length - 1]] };
    Object.assign(made.axes[0], { splits: () => marks, filter: (_, splits) => splits });
    return { options: made, data: [bounds.slice(0, -1), share(a), share(b)] };
  };

  const drawAll = () => {
    drawn.forEach(([plot]) => plot.destroy());
    drawn = [];
    draw("latency", () => lines((cell, _, side) => cell.p50_ms[side], (cell, _, side) => cell.p99_ms[side], "p50 ms"));
    draw("throughput", () => lines((cell, row, side) => {
      const { low, median, high } = cell.requests_per_second[side];
      return { low: low * row, median: median * row, high: high * row };
    }, null, "rows/s"));
    draw("memory", memory);
    draw("distribution", distribution);
    document.documentElement.dataset.drawn = String(drawn.length);
  };

  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => drawn.forEach(([plot, target]) => plot.setSize({ width: Math.max(240, target.clientWidth), height: HEIGHT })));
})();
