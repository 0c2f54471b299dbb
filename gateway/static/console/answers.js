// What a model has answered: scores as bars, all else as text, and two answers compared in a sentence.

import { short } from "./figures.js";

const MOST_SCORES = 20;
const MOST_TEXT = 4000;

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content);
  return made;
}

/** One answer: `outputs` of the Open Inference Protocol, or `error`. */
export function showAnswer({ about, outputs, version, took, error }) {
  const framework = { pytorch: "PyTorch", tensorflow: "TensorFlow" }[about.framework] || about.framework;
  const shown = element("article", "answer", element("h3", "", about.model));
  if (error) {
    shown.append(element("p", "reason", error));
    return shown;
  }
  shown.append(element("div", "note", `${framework}, version ${version}, ${short(took)} ms`));
  for (const output of outputs) shown.append(...one(output, about.labels[output.name] || []));
  return shown;
}

function one(output, labels) {
  const scores = scoresOf(output);
  if (!scores) {
    const text = JSON.stringify(output.data);
    const cut = text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}…` : text;
    return [element("div", "note", `${output.name} ${output.datatype} [${output.shape}]`), element("pre", "", cut)];
  }
  const best = highest(scores);
  const name = (index) => labels[index] ?? String(index);
  const top = Math.max(...scores, 1e-9);
  const rows = scores.map((score, index) => {
    const track = element("span", "track", element("span", ""));
    track.firstChild.style.width = `${Math.max(0, (100 * score) / top)}%`;
    return element("div", "score", element("span", "", name(index)), track, element("span", "number", brief(score)));
  });
  return [element("div", "note", output.name), element("div", "top-class", name(best)), ...rows];
}

/** The numbers of an output that is one row of scores; null of any other. */
function scoresOf({ datatype, shape, data }) {
  const last = shape[shape.length - 1] || 0;
  const row = shape.length > 1 && shape.slice(0, -1).every((size) => size === 1) && last > 1 && last <= MOST_SCORES;
  return row && datatype.includes("FP") ? data : null;
}

const brief = (score) => (score && Math.abs(score) < 0.001 ? score.toExponential(0) : short(score));
const highest = (scores) => scores.indexOf(Math.max(...scores));

/** Whether two models have answered the same. */
export function verdict(one, two) {
  if (one.error || two.error) return "";
  const sentences = [];
  let largest = null;
  for (const [index, output] of one.outputs.entries()) {
    const other = two.outputs.find(({ name }) => name === output.name) || two.outputs[index];
    if (!other || String(other.shape) !== String(output.shape)) return "The answers have different shapes.";
    if (output.datatype === "BYTES" || other.datatype === "BYTES") {
      const equal = JSON.stringify(output.data) === JSON.stringify(other.data);
      sentences.push(`${output.name} ${equal ? "is equal" : "differs"}.`);
      continue;
    }
    output.data.forEach((value, at) => { largest = Math.max(largest ?? 0, Math.abs(value - other.data[at])); });
    if (scoresOf(output) && scoresOf(other)) {
      sentences.push(highest(output.data) === highest(other.data) ? "Both say the same." : "They do not say the same.");
    }
  }
  if (largest !== null) sentences.push(`The largest difference is ${short(largest)}.`);
  return sentences.join(" ");
}
