// One input of the form: its numbers as JSON, a drawing or an image where its shape is that of one, text, or a file.

import { DrawingPad, picture, sides } from "./pad.js";

const product = (shape) => shape.reduce((total, size) => total * size, 1);

/** A field for an input of a signature; `example` is one that the model has answered, if there is one. */
export function fieldFor(input, example) {
  const element = document.createElement("fieldset");
  element.className = "field";
  const legend = document.createElement("legend");
  legend.textContent = `${input.name} · ${input.datatype} [${input.shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]${input.guessed ? " · a guess" : ""}`;
  const how = document.createElement("div");
  how.className = "how";
  const place = document.createElement("div");
  element.append(legend, how, place);
  const ways = waysFor(input, example);
  let current = ways[0];
  ways.forEach((way, index) => {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = `how-${input.name}`;
    radio.checked = index === 0;
    radio.addEventListener("change", () => {
      current = way;
      place.replaceChildren(way.element);
    });
    label.append(radio, ` ${way.label}`);
    if (ways.length > 1) how.append(label);
  });
  place.append(current.element);
  return { element, read: () => current.read() };
}

function waysFor(input, example) {
  const size = sides(input);
  if (input.datatype === "BYTES") return [textWay(input, example), fileWay(input)];
  if (!size) return [numbersWay(input, example)];
  const drawn = size.channels === 1 ? [drawWay(input, size)] : [];
  return [...drawn, imageWay(input, size), numbersWay(input, example)];
}

const named = (input, shape, data) => ({ name: input.name, datatype: input.datatype, shape, data });

/** The shape of so many values: what is left open of a signature's is filled from the front. */
function shapeOf(input, count) {
  const shape = [...input.shape];
  const open = shape.filter((size) => size < 0).length;
  const rest = product(shape.filter((size) => size >= 0)) || 1;
  let left = count / rest;
  for (let at = 0, seen = 0; at < shape.length; at += 1) {
    if (shape[at] >= 0) continue;
    seen += 1;
    shape[at] = seen === open ? left : 1;
  }
  if (!open && product(shape) !== count) throw new Error(`${input.name} takes ${product(shape)} values, not ${count}`);
  if (open && !Number.isInteger(left)) throw new Error(`${input.name}: ${count} values do not fill rows of ${rest}`);
  return shape;
}

function area(value, label) {
  const made = document.createElement("textarea");
  made.value = value;
  made.spellcheck = false;
  made.setAttribute("aria-label", label);
  return made;
}

function shapeIn(data) {
  const shape = [];
  for (let level = data; Array.isArray(level); level = level[0]) shape.push(level.length);
  return shape;
}

function numbersWay(input, example) {
  const element = area(example ? JSON.stringify(example.data) : "", `${input.name}, numbers as JSON`);
  const begin = element.value;
  return {
    label: "Numbers (JSON)",
    element,
    read() {
      if (!element.value.trim() && input.optional) return null;
      let data;
      try {
        data = JSON.parse(element.value);
      } catch {
        throw new Error(`${input.name} is not JSON: a list of numbers, such as [1, 2.5]`);
      }
      if (element.value === begin && example) return named(input, example.shape, data);
      if (!Array.isArray(data)) data = [data];
      const flat = data.flat(Infinity);
      return named(input, shapeIn(data).length > 1 ? shapeIn(data) : shapeOf(input, flat.length), flat);
    },
  };
}

function textWay(input, example) {
  const element = area(example ? example.data.flat(Infinity).join("\n") : "", `${input.name}, one text a line`);
  return {
    label: "Text, one a line",
    element,
    read() {
      const lines = element.value.split("\n").filter((line, at, all) => line || at < all.length - 1);
      return named(input, shapeOf(input, lines.length), lines);
    },
  };
}

function fileWay(input) {
  const element = document.createElement("input");
  element.type = "file";
  element.setAttribute("aria-label", `${input.name}, a file`);
  return {
    label: "File, as it is",
    element,
    async read() {
      const file = element.files[0];
      if (!file) throw new Error(`choose a file for ${input.name}`);
      return { ...named(input, shapeOf(input, 1)), file };
    },
  };
}

function drawWay(input, size) {
  const pad = new DrawingPad(size, `Draw ${input.name}`);
  return {
    label: "Draw",
    element: pad.element,
    read: () => named(input, shapeOf(input, size.height * size.width), pad.values()),
  };
}

function imageWay(input, size) {
  const element = document.createElement("div");
  element.className = "pad";
  const file = document.createElement("input");
  file.type = "file";
  file.accept = "image/*";
  file.setAttribute("aria-label", `${input.name}, an image`);
  const said = document.createElement("span");
  said.className = "note";
  said.textContent = `scaled to ${size.height} × ${size.width}, values 0 to 1`;
  element.append(file, said);
  return {
    label: "Image",
    element,
    async read() {
      if (!file.files[0]) throw new Error(`choose an image for ${input.name}`);
      const values = await picture(file.files[0], size);
      return named(input, shapeOf(input, values.length), values);
    },
  };
}
