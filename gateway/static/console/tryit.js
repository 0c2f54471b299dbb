// The form that asks a model, made from its signature, and the answers of two models beside each other.

import { showAnswer, verdict } from "./answers.js";
import { fieldFor } from "./fields.js";
import { call, getJson, modelPath, postJson } from "./http.js";

const at = (id) => document.getElementById(id);
export class TryIt {
  constructor() {
    this.known = new Map(); // model → a promise of its metadata, labels and example, as long as the same version answers
    this.ready = new Map(); // model → which version that is, and what it takes
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
      if (version.state !== "READY" || !version.default) continue;
      ready.set(version.model, { which: `${key} ${version.load_seconds}`, inputs: JSON.stringify(version.inputs) });
    }
    const said = (models) => [...models].map(([model, { which }]) => `${model} ${which}`).sort().join();
    if (said(ready) === said(this.ready)) return;
    for (const [model, { which }] of this.ready) if (ready.get(model)?.which !== which) this.known.delete(model);
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
      this.offerTwins(model);
      const about = await this.about(model);
      if (at("try-model").value !== model) return;
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

  /** The models that take the same inputs. */
  offerTwins(model) {
    const { inputs } = this.ready.get(model);
    const names = [...this.ready.keys()].filter((other) => other !== model && this.ready.get(other).inputs === inputs).sort();
    const select = at("try-twin"), chosen = select.value;
    select.replaceChildren(new Option("no other", ""), ...names.map((name) => new Option(name, name)));
    const twin = names.find((name) => name.split("_")[0] === model.split("_")[0]);
    select.value = names.includes(chosen) ? chosen : twin || "";
  }

  about(model) {
    if (!this.known.has(model)) {
      const asked = askAbout(model);
      asked.catch(() => this.known.delete(model)); // the next time may succeed
      this.known.set(model, asked);
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

async function askAbout(model) {
  const [metadata, config, documented] = await Promise.all(
    ["", "/config", "/openapi.json"].map((part) => getJson(modelPath(model) + part)),
  );
  const body = documented.paths[`/${modelPath(model)}/infer`]?.post.requestBody.content["application/json"];
  const example = body?.example ?? Object.values(body?.examples ?? {})[0]?.value;
  return {
    model,
    inputs: metadata.inputs,
    framework: metadata.parameters.framework,
    labels: Object.fromEntries(config.output.map((output) => [output.name, output.labels || []])),
    example: Object.fromEntries((example?.inputs ?? []).map((input) => [input.name, input])),
  };
}

/** As JSON, with the bytes of files, if there are any, behind it (the binary tensor data extension). */
async function infer(model, inputs) {
  const path = `${modelPath(model)}/infer`;
  if (!inputs.some(({ file }) => file)) return postJson(path, { inputs });
  const behind = [];
  const described = inputs.map(({ file, ...input }) => {
    if (!file) return input;
    const size = new DataView(new ArrayBuffer(4));
    size.setUint32(0, file.size, true);
    behind.push(size, file);
    const { data, ...tensor } = input;
    return { ...tensor, parameters: { binary_data_size: file.size + 4 } };
  });
  const head = new TextEncoder().encode(JSON.stringify({ inputs: described }));
  const headers = { "inference-header-content-length": String(head.length) };
  return (await call(path, { method: "POST", headers, body: new Blob([head, ...behind]) })).json();
}

function say(sentence, failed = false) {
  at("try-note").textContent = sentence;
  at("try-note").classList.toggle("error", failed);
}
