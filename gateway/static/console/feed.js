// The gateway's events, once a second: what has changed is put together with what was known to a whole picture.

import { call } from "./http.js";

const SILENCE_MS = 15000; // after so long without a word the line is taken for dead
const AGAIN_MS = [1000, 2000, 5000, 10000]; // each time without success longer

/**
 * Follow the events for ever. `onPicture(before, now)` gets whole pictures: { time, constants, devices, versions };
 * `before` is null for the first after each connection. `onState(state, error)` is told live, lost or refused.
 */
export async function follow(onPicture, onState) {
  let failures = 0;
  for (;;) {
    try {
      await once(onPicture, () => {
        failures = 0;
        onState("live");
      });
      continue; // the gateway ends each stream after a while
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        const changed = keyChanged();
        onState("refused", error);
        await changed;
        continue;
      }
      onState("lost", error);
    }
    await new Promise((resume) => { setTimeout(resume, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]); });
    failures += 1;
  }
}

let wake = () => {};
/** Called when another key is in use. */
export const tryAgain = () => wake();
const keyChanged = () => new Promise((resume) => { wake = resume; });

async function once(onPicture, onLive) {
  const ending = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => ending.abort(), SILENCE_MS);
  };
  wake = () => ending.abort();
  try {
    heard();
    const response = await call("console/events", { signal: ending.signal, cache: "no-store" });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "", before = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        const now = merged(before, JSON.parse(event.slice(6)));
        onLive();
        onPicture(before, now);
        before = now;
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

/** The picture before with an event's changes. */
export function merged(before, event) {
  const versions = new Map(before ? before.versions : []);
  for (const key of event.gone) versions.delete(key);
  for (const [key, version] of Object.entries(event.versions)) versions.set(key, version);
  return { time: event.time, constants: event.constants, devices: event.devices, versions };
}
