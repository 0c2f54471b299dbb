// The last report of `gateway compare`: a page of its own, in a frame that can do nothing but show it.

import { call } from "./http.js";

/** Show it, or what makes one. */
export async function showReport(place) {
  try {
    const answer = await call("console/report");
    place.replaceChildren(...(answer.status === 204 ? hint() : [framed(await answer.text())]));
  } catch (error) {
    place.textContent = error.message;
  }
}

function framed(page) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts"); // an origin of its own: it cannot reach the key of this one
  frame.title = "Report of gateway compare";
  frame.srcdoc = page;
  return frame;
}

function hint() {
  const sentence = document.createElement("p");
  sentence.className = "note";
  sentence.textContent = "No report yet. This measures two models side by side and makes one:";
  const command = document.createElement("code");
  command.textContent = "gateway compare MODEL_A MODEL_B";
  return [sentence, command];
}
