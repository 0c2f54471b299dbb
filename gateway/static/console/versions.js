// The table of all versions, with what may be done to them.

import { bytes, quantile, short } from "./figures.js";
import { postJson } from "./http.js";

const note = document.getElementById("models-note");
const body = document.getElementById("versions");
const rows = new Map();
const under = new Set(); // models that something is being done to

/** Bring the table up to date; `doing` holds each version's activity. */
export function showVersions(now, doing) {
  const keys = [...now.versions.keys()].sort();
  for (const [key, row] of rows) {
    if (!now.versions.has(key)) {
      row.remove();
      rows.delete(key);
    }
  }
  const ofModel = new Map(); // model → its versions' keys, in order
  for (const key of keys) {
    const { model } = now.versions.get(key);
    ofModel.set(model, [...(ofModel.get(model) || []), key]);
  }
  keys.forEach((key, index) => {
    if (!rows.has(key)) rows.set(key, newRow());
    const row = rows.get(key);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
    const version = now.versions.get(key);
    fill(row, version, doing.get(key), now, ofModel.get(version.model).map((each) => now.versions.get(each)));
  });
}

function newRow() {
  const row = document.createElement("tr");
  const cells = [["name", ""], ["state", ""], ["framework", ""], ["device", ""], ["memory", ""], ["rate", "req/s"], ["p50", "p50 ms"],
    ["p99", "p99 ms"], ["actions", ""]];
  for (const [name, label] of cells) {
    const cell = document.createElement("td");
    cell.dataset.cell = name;
    if (label) {
      cell.dataset.label = label;
      cell.className = "number";
    }
    row.append(cell);
  }
  row.querySelector("[data-cell=memory]").className = "memory-cell";
  row.querySelector("[data-cell=actions]").className = "actions wide-cell";
  return row;
}

function fill(row, version, activity, now, siblings) {
  const durations = activity ? activity.durations : [];
  const { bounds } = now.constants;
  const several = siblings.filter(serves).length > 1;
  put(row, "framework", { pytorch: "PyTorch", tensorflow: "TensorFlow" }[version.framework] || version.framework);
  put(row, "device", counted(version.devices));
  put(row, "rate", activity ? short(activity.rate) : "–");
  put(row, "p50", short(quantile(0.5, durations, bounds)));
  put(row, "p99", short(quantile(0.99, durations, bounds)));
  build(row, "name", [version.default, several, version.load_seconds, version.restarts, version.evictions, version.shadows], () =>
    name(version, several));
  build(row, "state", [version.state, version.reason, version.rejected, version.disagreement], () => state(version));
  build(row, "memory", [version.held, now.devices], () => memory(version, now.devices));
  const leads = siblings[0] === version; // what is done to a model stands in its first row
  const busy = under.has(version.model);
  build(row, "actions", [version.state, version.default, several, siblings.map(serves), leads, busy], () =>
    actions(version, several, leads, siblings));
}

const cellOf = (row, name) => row.querySelector(`[data-cell=${name}]`);

function put(row, name, value) {
  const cell = cellOf(row, name);
  if (cell.textContent !== value) cell.textContent = value;
}

/** Make a cell anew only if what it shows has changed: what has the focus, or is being pressed, stays as it is. */
function build(row, name, shown, make) {
  const cell = cellOf(row, name), text = JSON.stringify(shown);
  if (cell.dataset.shown === text) return;
  cell.dataset.shown = text;
  cell.replaceChildren(...make());
}

function element(tag, className, content) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = content;
  return made;
}

function name(version, several) {
  const found = [element("strong", "", `${version.model}/${version.version}`)];
  const more = [];
  if (several && version.default) more.push("default");
  if (version.load_seconds) more.push(`loaded in ${short(version.load_seconds)} s`);
  if (version.restarts) more.push(`${version.restarts} restarts`);
  if (version.evictions) more.push(`evicted ${version.evictions}×`);
  for (const [other, shadow] of Object.entries(version.shadows || {})) more.push(agreement(other, shadow));
  if (more.length) found.push(element("div", "sub", more.join(" · ")));
  return found;
}

function agreement(other, { requests, classes }) {
  const answered = (requests.agreed || 0) + (requests.differed || 0);
  const scored = (classes.same || 0) + (classes.other || 0);
  const same = scored ? `, same class in ${short((100 * (classes.same || 0)) / scored)} %` : "";
  return `shadow ${other}: agrees in ${answered ? short((100 * (requests.agreed || 0)) / answered) : "–"} %${same}`;
}

function state(version) {
  const found = [element("span", `state ${version.state}`, version.state)];
  if (version.reason) found.push(element("div", "reason", version.reason));
  if (version.rejected) found.push(element("div", "reason", "newer files of it have failed to load"));
  if (version.disagreement) found.push(element("div", "reason", `batching switched off: ${version.disagreement}`));
  return found;
}

function memory(version, devices) {
  return Object.entries(version.held).flatMap(([device, size]) => {
    const bar = element("div", "bar", "");
    const part = document.createElement("span");
    part.style.width = `${Math.min(100, (100 * size) / (devices[device]?.budget || size))}%`;
    bar.append(part);
    return [element("div", "sub", bytes(size) + (device === "cpu" ? "" : ` on ${device}`)), bar];
  });
}

const counted = (devices) => Object.entries(devices.reduce((sum, device) => ({ ...sum, [device]: (sum[device] || 0) + 1 }), {}))
  .map(([device, count]) => (count > 1 ? `${count} × ${device}` : device)).join(", ");

const serves = ({ state: now }) => now === "READY" || now === "COLD";

function actions(version, several, leads, siblings) {
  const found = [];
  if (several && !version.default && version.state === "READY") {
    found.push(button("Make default", version, `versions/${encodeURIComponent(version.version)}/default`));
  }
  if (leads) {
    const loaded = siblings.some((each) => serves(each) || each.state === "LOADING" || each.state === "NEW");
    const all = siblings.length > 1 ? " all" : "";
    found.push(button(`${loaded ? "Reload" : "Load"}${all}`, version, "load"));
    if (loaded) found.push(button(`Unload${all}`, version, "unload"));
  }
  return found.flatMap((each) => [each, " "]);
}

function button(label, version, action) {
  const made = element("button", "", label);
  made.type = "button";
  made.disabled = under.has(version.model);
  made.setAttribute("aria-label", `${label} ${version.model}${action.includes("/") ? ` version ${version.version}` : ""}`);
  made.addEventListener("click", () => act(label, version.model, action));
  return made;
}

async function act(label, model, action) {
  under.add(model);
  say(`${label} ${model}…`);
  try {
    await postJson(`v2/repository/models/${encodeURIComponent(model)}/${action}`, {});
    say(`${label} ${model}: done`);
  } catch (error) {
    say(`${label} ${model}: ${error.message}`, true);
  } finally {
    under.delete(model);
  }
}

function say(sentence, failed = false) {
  note.textContent = sentence;
  note.classList.toggle("error", failed);
}
