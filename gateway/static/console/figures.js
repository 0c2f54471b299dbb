// Rates and latencies between two pictures of the gateway: functions of their arguments.

const less = (now, before) => now.map((value, at) => value - (before ? before[at] : 0));
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** What one version did between two pictures, `seconds` apart; null if that is not known. */
export function activity(before, now, seconds) {
  if (!before || now.requests === undefined || before.requests > now.requests) return null;
  const known = before.requests === undefined ? null : before;
  const done = now.requests - (known ? known.requests : 0);
  const durations = less(now.durations, known && known.durations);
  const computed = sum(durations);
  return {
    rate: done / seconds,
    errors: (now.failed - (known ? known.failed : 0)) / seconds,
    durations,
    computed,
    stages: less(now.stages, known && known.stages).map((total) => (computed ? (1000 * total) / computed : null)),
  };
}

/** All versions' activities together. */
export function together(activities) {
  const durations = [];
  for (const each of activities) each.durations.forEach((count, at) => { durations[at] = (durations[at] || 0) + count; });
  return { rate: sum(activities.map((each) => each.rate)), errors: sum(activities.map((each) => each.errors)), durations };
}

/**
 * A quantile in ms of counts by bucket; `bounds` are the upper bounds in seconds of all buckets but the last. Within a
 * bucket it is interpolated, as Prometheus' histogram_quantile does. null if there are no counts.
 */
export function quantile(share, durations, bounds) {
  const total = sum(durations);
  if (!total) return null;
  let below = 0;
  for (let at = 0; at < durations.length; at += 1) {
    if (durations[at] && below + durations[at] >= share * total) {
      if (at >= bounds.length) return 1000 * bounds[bounds.length - 1];
      const from = at ? bounds[at - 1] : 0;
      return 1000 * (from + (bounds[at] - from) * ((share * total - below) / durations[at]));
    }
    below += durations[at];
  }
  return null;
}

/** A number for people: three digits that mean something. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

/** Bytes for people. */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0, rest = value;
  while (rest >= 1000 && at < units.length - 1) { rest /= 1000; at += 1; }
  return `${short(rest)} ${units[at]}`;
}
