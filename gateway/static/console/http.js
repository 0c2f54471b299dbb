// Calls of the gateway, with the API key that was typed in, and its errors as sentences.

const KEY = "gateway-api-key";

export const key = () => sessionStorage.getItem(KEY) || "";

export function useKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What fetch answers; throws an Error with the gateway's own sentence, and the status as `status`. */
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw new Error("the gateway does not answer", { cause });
  }
  if (!response.ok) {
    let message = `the gateway answered ${response.status}`;
    try {
      message = (await response.json()).error || message;
    } catch { /* no JSON: the status is all there is to say */ }
    const error = new Error(message);
    error.status = response.status;
    throw error;
  }
  return response;
}

export const getJson = async (path) => (await call(path)).json();

export const postJson = async (path, body) =>
  (await call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

/** The path of a model, or of one of its versions. */
export const modelPath = (model, version) =>
  `v2/models/${encodeURIComponent(model)}` + (version ? `/versions/${encodeURIComponent(version)}` : "");
