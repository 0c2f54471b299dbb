// The last report of `gateway compare`, if there is one.
export async function showReport(place) {
  place.textContent = "No report yet: gateway compare MODEL_A MODEL_B makes one.";
}
