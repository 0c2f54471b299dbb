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
  const several = new Map();
  for (const version of now.versions.values()) {
    if (version.state === "READY" || version.state === "COLD") several.set(version.model, (several.get(version.model) || 0) + 1);
  }
  keys.forEach((key, index) => {
    if (!rows.has(key)) rows.set(key, newRow());
    const row = rows.get(key);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
    fill(row, now.versions.get(key), doing.get(key), now, several.get(now.versions.get(key).model) > 1);
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

function fill(row, version, activity, now, several) {
  const cell = (name) => row.querySelector(`[data-cell=${name}]`);
  const put = (name, value) => { if (cell(name).textContent !== value) cell(name).textContent = value; };
  put("framework", { pytorch: "PyTorch", tensorflow: "TensorFlow" }[version.framework] || version.framework);
  put("device", counted(version.devices));
  const durations = activity ? activity.durations : [];
  put("rate", activity ? short(activity.rate) : "–");
  put("p50", short(quantile(0.5, durations, now.constants.bounds)));
  put("p99", short(quantile(0.99, durations, now.constants.bounds)));
  const shown = JSON.stringify([version.state, version.reason, version.held, version.default, version.restarts, version.shadows,
    version.load_seconds, several, under.has(version.model)]);
  if (row.dataset.shown === shown) return; // what has the focus stays as it is
  row.dataset.shown = shown;
  cell("name").replaceChildren(...name(version, several));
  cell("state").replaceChildren(...state(version));
  cell("memory").replaceChildren(...memory(version, now.devices));
  cell("actions").replaceChildren(...actions(version, several));
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
  const rows = (classes.same || 0) + (classes.other || 0);
  const same = rows ? `, same class in ${short((100 * (classes.same || 0)) / rows)} %` : "";
  return `shadow ${other}: agrees in ${answered ? short((100 * (requests.agreed || 0)) / answered) : "–"} %${same}`;
}

function state(version) {
  const found = [element("span", `state ${version.state}`, version.state)];
  if (version.reason) found.push(element("div", "reason", version.reason));
  if (version.rejected) found.push(element("div", "reason", "newer files of it have failed to load"));
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

function actions(version, several) {
  const serves = ["READY", "COLD", "LOADING", "NEW"].includes(version.state);
  const found = [];
  if (several && !version.default && version.state === "READY") {
    found.push(button("Make default", version, `versions/${encodeURIComponent(version.version)}/default`));
  }
  found.push(button(serves ? "Reload" : "Load", version, "load"));
  if (serves) found.push(button("Unload", version, "unload"));
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
