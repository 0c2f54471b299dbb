// The console: follows the gateway's events and keeps tiles, charts and tables up to date.

import { LiveChart, SERIES } from "./charts.js";
import { showReport } from "./compare.js";
import { follow, tryAgain } from "./feed.js";
import { activity, bytes, quantile, short, together } from "./figures.js";
import { useKey } from "./http.js";
import { TryIt } from "./tryit.js";
import { showVersions } from "./versions.js";

const at = (id) => document.getElementById(id);
const text = (id, value) => { at(id).textContent = value; };
const ms = (value) => (value === null ? "–" : `${short(value)} ms`);

const rateChart = new LiveChart(at("chart-rate"), {
  describe: (values) => `Requests per second now: ${list(values)}`,
});
const stageChart = new LiveChart(at("chart-stages"), {
  stacked: true, unit: " ms", describe: (values) => `Mean time by stage now, in ms: ${list(values)}`,
});
const latencyChart = new LiveChart(at("chart-latency"), {
  unit: " ms", describe: (values) => `Latency now, in ms: ${list(values)}`,
});
const tryIt = new TryIt();
const busy = []; // the versions that have had requests since the page was opened, in the order of their lines
let watched = "";

const list = (values) => Object.entries(values).map(([name, value]) => `${name} ${short(value)}`).join(", ") || "none";

function onPicture(before, now) {
  const seconds = before ? Math.max(now.time - before.time, 0.1) : 1;
  const doing = new Map();
  if (before) {
    for (const [key, version] of now.versions) {
      const found = activity(before.versions.get(key), version, seconds);
      if (found) doing.set(key, found);
    }
  }
  showTiles([...doing.values()], now.constants.bounds);
  showBudgets(now);
  if (before) showCharts(now, doing);
  showVersions(now, doing);
  tryIt.offer(now);
}

function showTiles(activities, bounds) {
  const all = together(activities);
  text("now-rate", short(all.rate));
  text("now-errors", short(all.errors));
  text("now-p50", ms(quantile(0.5, all.durations, bounds)));
  text("now-p99", ms(quantile(0.99, all.durations, bounds)));
}

function showBudgets(now) {
  const place = at("budgets");
  place.replaceChildren(...Object.entries(now.devices).map(([device, { budget }]) => {
    const held = [...now.versions].map(([key, version]) => [key, version.held[device] || 0]).filter(([, size]) => size);
    const total = held.reduce((sum, [, size]) => sum + size, 0);
    const row = document.createElement("div");
    row.className = "budget";
    const said = document.createElement("div");
    said.textContent = `${device}: ${bytes(total)} of ${bytes(budget)}`;
    const bar = document.createElement("div");
    bar.className = "bar";
    held.sort((one, other) => other[1] - one[1]).forEach(([key, size], index) => {
      const part = document.createElement("span");
      part.style.width = `${(100 * size) / Math.max(budget, total)}%`;
      part.style.background = `var(${SERIES[index % SERIES.length]})`;
      part.title = `${key}: ${bytes(size)}`;
      bar.append(part);
    });
    row.append(said, bar);
    return row;
  }));
}

function showCharts(now, doing) {
  const rates = {};
  let others = 0;
  for (const [key, { rate }] of doing) {
    if (rate && !busy.includes(key)) busy.push(key);
    if (busy.indexOf(key) >= SERIES.length - 1) others += rate;
  }
  for (const key of busy.slice(0, SERIES.length - 1)) rates[key] = doing.get(key)?.rate ?? 0;
  if (busy.length >= SERIES.length) rates.others = others;
  rateChart.add(now.time, rates);
  offerVersions(now);
  const [key, found] = chosen(doing);
  if (key !== watched) {
    watched = key;
    stageChart.clear();
    latencyChart.clear();
    text("latency-of", key ? `of ${key}` : "");
  }
  if (!key) return;
  const stages = found?.computed ? found.stages : now.constants.stages.map(() => null);
  stageChart.add(now.time, Object.fromEntries(now.constants.stages.map((stage, index) => [stage, stages[index]])));
  const durations = found ? found.durations : [];
  latencyChart.add(now.time, Object.fromEntries(
    [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]].map(([name, share]) => [name, quantile(share, durations, now.constants.bounds)]),
  ));
}

/** The version whose times are shown: the one that was picked, else the busiest, else the one before. */
function chosen(doing) {
  const picked = at("chart-version").value;
  if (picked) return [picked, doing.get(picked)];
  let most = doing.get(watched)?.rate ? watched : "";
  for (const [key, { rate }] of doing) if (rate > 2 * (doing.get(most)?.rate ?? 0)) most = key;
  return [most || watched, doing.get(most || watched)];
}

function offerVersions(now) {
  const select = at("chart-version");
  const keys = [...now.versions.keys()].sort();
  if (keys.join() === [...select.options].slice(1).map((option) => option.value).join()) return;
  const before = select.value;
  select.replaceChildren(select.options[0], ...keys.map((key) => new Option(key, key)));
  select.value = keys.includes(before) ? before : "";
}

function onState(state, error) {
  const place = at("connection");
  place.className = state === "live" ? "live" : "lost";
  const said = { live: "live", lost: "no connection; trying again", refused: "an API key is needed" };
  place.textContent = error?.status ? `${state === "refused" ? `${said.refused}: ` : ""}${error.message}` : said[state];
  if (state === "refused") askForKey();
}

function askForKey() {
  const dialog = at("key-dialog");
  if (dialog.open) return;
  dialog.returnValue = ""; // what it was closed with last time says nothing
  dialog.showModal();
}

at("key-button").addEventListener("click", askForKey);
at("key-dialog").addEventListener("close", () => {
  const wish = at("key-dialog").returnValue;
  if (wish === "use") useKey(at("key-value").value.trim());
  if (wish === "forget") useKey("");
  at("key-value").value = "";
  if (!wish) return;
  tryAgain();
  showReport(at("compare-report"));
});

showReport(at("compare-report"));
follow(onPicture, onState);
