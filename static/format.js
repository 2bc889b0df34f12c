/** How figures and times are shown. Times are told relative to now, with the exact one as a tool tip; one timer keeps
 *  all of them true. Epochs are seconds of the server's clock: `setClock` tells how far the browser's is away. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const NOTHING = "–";
const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const TIME = {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"};
const exact = new Intl.DateTimeFormat(undefined, {year: "numeric", month: "short", day: "numeric", ...TIME,
                                                   timeZoneName: "short"});
const wall = new Intl.DateTimeFormat(undefined, TIME);
const dayOf = new Intl.DateTimeFormat(undefined, {month: "short", day: "numeric"});

const known = (value) => typeof value === "number" && isFinite(value);

/** 12,345; a dash for what is not known. */
export const count = (value) => known(value) ? whole.format(value) : NOTHING;

/** "37 %" of 0..100. */
export const percent = (value) => known(value) ? whole.format(value) + " %" : NOTHING;

/** "3.2 GiB" of a number of bytes. */
export function bytes(value) {
  if (!known(value)) return NOTHING;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return value.toFixed(unit && value < 9.95 ? 1 : 0) + " " + UNITS[unit];
}

/** "3", "3.2" or "0.04": a rate, with as many digits as help. */
export function rate(value) {
  if (!known(value)) return NOTHING;
  return value >= 10 || value === 0 ? whole.format(value) : value.toFixed(value >= 1 ? 1 : 2);
}

/** Arguments of a task as they stand in a call; nothing where the monitor hides them. */
export const argumentsOf = (task) => [task.args, task.kwargs].filter(Boolean).join(", ");

/** "1 node", "2 nodes". */
export const plural = (number, word) => count(number) + " " + word + (number === 1 ? "" : "s");

const LARGER = [["day", 86400], ["h", 3600], ["min", 60]];

/** "12 s", "3 min", "5 h", "2 days": how long, as precise as a reader needs; with the next smaller unit if `finer`. */
export function duration(seconds, finer) {
  const s = Math.max(0, Math.floor(seconds));
  const found = LARGER.findIndex((unit) => s >= unit[1]);
  if (found < 0) return s + " s";
  const [name, size] = LARGER[found], whole = Math.floor(s / size), rest = finer ? s % size : 0;
  const text = whole + " " + name + (name === "day" && whole > 1 ? "s" : "");
  if (found === LARGER.length - 1) return rest ? text + " " + rest + " s" : text;
  const [smaller, part] = LARGER[found + 1];
  return rest >= part ? text + " " + Math.floor(rest / part) + " " + smaller : text;
}

/** "1.3 s", "45 ms": how long something took. */
export function took(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 1) return whole.format(seconds * 1000) + " ms";
  return seconds < 10 ? seconds.toFixed(1) + " s" : duration(seconds, true);
}

/** "17:03:12", of an epoch in seconds. */
export const clockTime = (epoch) => wall.format(epoch * 1000);

let offset = 0;                     // seconds that the server's clock is ahead of the browser's

/** Note that the server's clock showed `epoch` just now. */
export function setClock(epoch) {
  if (known(epoch)) offset = epoch - Date.now() / 1000;
}

/** The server's clock, in seconds. */
export const now = () => Date.now() / 1000 + offset;

function ago(epoch) {
  const s = now() - epoch;
  if (s < 5) return "now";
  return (s < 60 ? Math.floor(s / 5) * 5 + " s" : duration(s)) + " ago";
}

const running = (epoch) => duration(now() - epoch, true);

const at = (epoch) => (now() - epoch > 43200 ? dayOf.format(epoch * 1000) + ", " : "") + clockTime(epoch);

const told = new Map();             // <time> element -> [epoch, how to tell it]

function tell(element, epoch, how) {
  const text = how(epoch);
  if (element.textContent !== text) element.textContent = text;
}

function show(element, epoch, how) {
  if (!known(epoch) || epoch <= 0) {
    told.delete(element);
    element.textContent = NOTHING;
    element.removeAttribute("datetime");
    element.removeAttribute("title");
    return;
  }
  told.set(element, [epoch, how]);
  element.dateTime = new Date(epoch * 1000).toISOString();
  element.title = exact.format(epoch * 1000);
  tell(element, epoch, how);
}

/** Keep `element`, a <time>, showing how long ago `epoch` is. */
export const showAgo = (element, epoch) => show(element, epoch, ago);

/** Show the time of day in `element`, a <time>, with the day if it is long ago. */
export const showAt = (element, epoch) => show(element, epoch, at);

/** Keep `element`, a <time>, showing how long it is since `epoch`. */
export const showRunning = (element, epoch) => show(element, epoch, running);

setInterval(() => {
  if (document.hidden) return;
  for (const [element, [epoch, how]] of told) {
    if (element.isConnected) tell(element, epoch, how);
    else told.delete(element);
  }
}, 1000);
