// The form that asks a model, made from its signature, and the answers of two models beside each other.

import { showAnswer, verdict } from "./answers.js";
import { fieldFor } from "./fields.js";
import { call, getJson, modelPath, postJson } from "./http.js";

const at = (id) => document.getElementById(id);
const kind = (inputs) => JSON.stringify(inputs.map(({ name, datatype, shape }) => [name, datatype, shape]));

export class TryIt {
  constructor() {
    this.known = new Map(); // model → its metadata, labels and example, as long as the same version answers
    this.ready = new Map(); // model → what says which version that is
    this.fields = [];
    at("try-model").addEventListener("change", () => this.show());
    at("try-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
  }

  /** The models that can be asked now. */
  offer(now) {
    const ready = new Map();
    for (const [key, version] of now.versions) {
      if (version.state === "READY" && version.default) ready.set(version.model, `${key} ${version.load_seconds}`);
    }
    const before = [...this.ready.entries()].sort().join();
    if ([...ready.entries()].sort().join() === before) return;
    for (const [model, which] of this.ready) if (ready.get(model) !== which) this.known.delete(model);
    this.ready = ready;
    const select = at("try-model"), chosen = select.value;
    const models = [...ready.keys()].sort();
    select.replaceChildren(...models.map((model) => new Option(model, model)));
    const first = models.find((model) => model.startsWith("digits")) || models[0] || "";
    select.value = models.includes(chosen) ? chosen : first;
    this.show();
  }

  async show() {
    const model = at("try-model").value;
    at("try-send").disabled = true; // until its fields are there
    if (!model) {
      at("try-inputs").replaceChildren();
      say("no model is ready");
      return;
    }
    try {
      const about = await this.about(model);
      const all = await Promise.allSettled([...this.ready.keys()].map((other) => this.about(other)));
      if (at("try-model").value !== model) return;
      const others = all.filter((each) => each.status === "fulfilled").map((each) => each.value);
      this.offerTwins(about, others);
      if (this.shown !== about) {
        this.fields = about.inputs.map((input) => fieldFor(input, about.example?.[input.name]));
        at("try-inputs").replaceChildren(...this.fields.map((field) => field.element));
        at("try-answers").replaceChildren();
        at("try-verdict").textContent = "";
        at("try-inputs").dataset.model = model;
        this.shown = about;
      }
      at("try-send").disabled = false;
      say("");
    } catch (error) {
      say(error.message, true);
    }
  }

  offerTwins(about, others) {
    const twins = others.filter((other) => other.model !== about.model && kind(other.inputs) === kind(about.inputs));
    const select = at("try-twin"), chosen = select.value;
    select.replaceChildren(new Option("no other", ""), ...twins.map(({ model }) => new Option(model, model)));
    const names = twins.map(({ model }) => model);
    const twin = names.find((name) => name.split("_")[0] === about.model.split("_")[0]);
    select.value = names.includes(chosen) ? chosen : twin || "";
  }

  async about(model) {
    if (!this.known.has(model)) {
      const [metadata, config, documented] = await Promise.all(
        ["", "/config", "/openapi.json"].map((part) => getJson(modelPath(model) + part)),
      );
      const body = documented.paths[`/${modelPath(model)}/infer`]?.post.requestBody.content["application/json"];
      const example = body?.example ?? Object.values(body?.examples ?? {})[0]?.value;
      this.known.set(model, {
        model,
        inputs: metadata.inputs,
        framework: metadata.parameters.framework,
        labels: Object.fromEntries(config.output.map((output) => [output.name, output.labels || []])),
        example: Object.fromEntries((example?.inputs ?? []).map((input) => [input.name, input])),
      });
    }
    return this.known.get(model);
  }

  async ask() {
    const models = [at("try-model").value, at("try-twin").value].filter(Boolean);
    at("try-send").disabled = true;
    say("");
    try {
      const inputs = [];
      for (const field of this.fields) {
        const input = await field.read();
        if (input) inputs.push(input);
      }
      const answers = await Promise.all(models.map((model) => this.answer(model, inputs)));
      at("try-answers").replaceChildren(...answers.map(showAnswer));
      at("try-verdict").textContent = answers.length > 1 ? verdict(...answers) : "";
    } catch (error) {
      say(error.message, true);
    } finally {
      at("try-send").disabled = false;
    }
  }

  async answer(model, inputs) {
    const about = await this.about(model);
    const begun = performance.now();
    try {
      const found = await infer(model, inputs);
      return { about, outputs: found.outputs, version: found.model_version, took: performance.now() - begun };
    } catch (error) {
      return { about, error: error.message, took: performance.now() - begun };
    }
  }
}

/** As JSON, or with a file's bytes behind it (the binary tensor data extension). */
async function infer(model, inputs) {
  const path = `${modelPath(model)}/infer`;
  const given = inputs.find(({ file }) => file);
  if (!given) return postJson(path, { inputs });
  const { file, data, ...tensor } = given;
  const size = new DataView(new ArrayBuffer(4));
  size.setUint32(0, file.size, true);
  const head = new TextEncoder().encode(JSON.stringify({
    inputs: inputs.map((input) => (input === given ? { ...tensor, parameters: { binary_data_size: file.size + 4 } } : input)),
  }));
  const headers = { "inference-header-content-length": String(head.length) };
  return (await call(path, { method: "POST", headers, body: new Blob([head, size, file]) })).json();
}

function say(sentence, failed = false) {
  at("try-note").textContent = sentence;
  at("try-note").classList.toggle("error", failed);
}
