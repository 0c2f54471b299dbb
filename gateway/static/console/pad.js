// Drawings and images as the numbers that a model takes.

const SIDE = 192;
const BRUSH = 0.11; // of the side
const STEP = SIDE / 16;

/**
 * The height, width and channels of images that an input takes, if its shape is that of one: [-1, H, W], with a channel
 * before or behind, or one row of numbers that make a square of 8 x 8 or 28 x 28. null for other inputs.
 */
export function sides({ datatype, shape }) {
  if (!datatype.startsWith("FP") && datatype !== "UINT8") return null;
  const fixed = shape.slice(1);
  if (shape.length < 2 || shape[0] > 1 || fixed.some((size) => size < 1)) return null;
  if (fixed.length === 1 && (fixed[0] === 64 || fixed[0] === 784)) {
    return { height: Math.sqrt(fixed[0]), width: Math.sqrt(fixed[0]), channels: 1, first: true, whole: datatype === "UINT8" };
  }
  const colours = (size) => size === 1 || size === 3;
  const [one, two, three] = fixed;
  const found = { whole: datatype === "UINT8" };
  if (fixed.length === 2 && one > 3 && two > 3) return { ...found, height: one, width: two, channels: 1, first: true };
  if (fixed.length === 3 && colours(one) && two > 3) return { ...found, height: two, width: three, channels: one, first: true };
  if (fixed.length === 3 && colours(three) && one > 3) return { ...found, height: one, width: two, channels: three, first: false };
  return null;
}

/** A file's pixels as numbers in 0..1 (0..255 where the model takes UINT8), in the order that the input has. */
export async function picture(file, { height, width, channels, first, whole }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  } catch {
    throw new Error("this file is no image that the browser can read");
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const scaled = (value) => (whole ? Math.round(value) : Math.round(value * (1000 / 255)) / 1000);
  const pixel = (at, channel) => scaled(channels === 1 ? 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2]
    : data[4 * at + channel]);
  const values = [];
  const count = height * width;
  if (first) for (let channel = 0; channel < channels; channel += 1) for (let at = 0; at < count; at += 1) values.push(pixel(at, channel));
  else for (let at = 0; at < count; at += 1) for (let channel = 0; channel < channels; channel += 1) values.push(pixel(at, channel));
  return values;
}

/** A black square to draw on in white, by mouse, finger, pen or arrow keys; beside it is what the model sees. */
export class DrawingPad {
  constructor({ height, width, whole }, label) {
    Object.assign(this, { height, width, whole, at: { x: SIDE / 2, y: SIDE / 4 } });
    this.canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE, tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${label}: arrow keys move the pen and draw, with Shift it is lifted, Delete clears`);
    this.sees = Object.assign(document.createElement("canvas"), { width, height, className: "sees" });
    this.sees.style.width = this.sees.style.height = "96px";
    this.sees.setAttribute("aria-hidden", "true");
    const clear = Object.assign(document.createElement("button"), { type: "button", textContent: "Clear" });
    clear.addEventListener("click", () => this.clear());
    this.element = document.createElement("div");
    this.element.className = "pad";
    const hint = document.createElement("span");
    hint.className = "note";
    hint.textContent = "what the model sees";
    const seen = document.createElement("div");
    seen.append(this.sees, document.createElement("br"), hint);
    this.element.append(this.canvas, seen, clear);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    Object.assign(this.context, { strokeStyle: "#fff", lineWidth: SIDE * BRUSH, lineCap: "round", lineJoin: "round" });
    this.listen();
    this.clear();
  }

  listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return { x: ((event.clientX - box.left) * SIDE) / box.width, y: ((event.clientY - box.top) * SIDE) / box.height };
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.line(place(event), place(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) this.line(this.at, place(event));
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (!steps[event.key]) return;
    else {
      const inside = (value) => Math.min(SIDE, Math.max(0, value));
      const [x, y] = steps[event.key];
      const to = { x: inside(this.at.x + x * STEP), y: inside(this.at.y + y * STEP) };
      if (event.shiftKey) this.at = to;
      else this.line(this.at, to);
    }
    event.preventDefault();
  }

  line(from, to) {
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x, to.y);
    this.context.stroke();
    this.at = to;
    this.look();
  }

  clear() {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, SIDE, SIDE);
    this.at = { x: SIDE / 2, y: SIDE / 4 };
    this.look();
  }

  /** The smallest box around what is drawn; null if nothing is. */
  box(pixels) {
    let left = SIDE, top = SIDE, right = -1, bottom = -1;
    for (let y = 0; y < SIDE; y += 1) {
      for (let x = 0; x < SIDE; x += 1) {
        if (pixels[4 * (y * SIDE + x)] < 40) continue;
        left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
    }
    return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
  }

  /** Show what the model sees: the drawing as large as the digits of the training data are in their frame. */
  look() {
    const small = this.sees.getContext("2d", { willReadFrequently: true });
    small.fillStyle = "#000";
    small.fillRect(0, 0, this.width, this.height);
    const box = this.box(this.context.getImageData(0, 0, SIDE, SIDE).data);
    if (!box) return;
    const frame = this.height >= 28 ? 20 / 28 : 1;
    const scale = Math.min((frame * this.height) / box.height, (frame * this.width) / box.width);
    const width = box.width * scale, height = box.height * scale;
    small.imageSmoothingEnabled = true;
    small.imageSmoothingQuality = "high";
    small.drawImage(this.canvas, box.left, box.top, box.width, box.height, (this.width - width) / 2, (this.height - height) / 2, width, height);
  }

  values() {
    const { data } = this.sees.getContext("2d").getImageData(0, 0, this.width, this.height);
    const found = [];
    for (let at = 0; at < data.length; at += 4) found.push(this.whole ? data[at] : Math.round((data[at] / 255) * 1000) / 1000);
    if (!found.some(Boolean)) throw new Error("draw something first");
    return found;
  }
}
