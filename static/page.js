/** What all pages share: the state of the connection, messages to the user, actions, cells of tables, and the start. */

import {Refused, post, session, start} from "./api.js";
import {clockTime, count, duration, now, showAgo} from "./format.js";
import {Feed} from "./live.js";

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** Set the text of the element with this id, if it differs. */
export function put(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

/** An element with these properties and children; texts are text. */
export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** `page` with `fields` in its query, as a link. */
export const link = (page, fields) => page + "?" + new URLSearchParams(fields);

/** Whether the page's first figures are still to come. */
export const loading = () => document.body.classList.contains("loading");

// Cells ---------------------------------------------------------------------------------------------------------------

/** Show `status`, one of the scheduler's words, as a badge. */
export function showStatus(element, status) {
  element.className = "status";
  element.dataset.status = status;
  element.textContent = status;
}

/** Columns (see table.js): a count, one of what failed, a status, a time; `of(record)` is the value. */
export const countColumn = (of) => ({show: (record) => count(of(record)), sort: of});
export const failedColumn = {...countColumn((record) => record.tasks_failed), paint(cell, record) {
  cell.textContent = count(record.tasks_failed);
  cell.classList.toggle("bad", record.tasks_failed > 0);
}};
export const statusColumn = {show: (record) => record.status, paint: (cell, record) => showStatus(cell, record.status)};
export const timeColumn = (of, paint) => ({
  show: (record) => String(of(record)), sort: of, paint: (cell, record) => (paint || showAgo)(cell, of(record))});

/** A column whose cells are links to `page`; `fields(record)` are the link's. */
export const linkColumn = (of, page, fields) => ({show: of, paint(cell, record) {
  cell.textContent = of(record);
  cell.href = link(page, fields(record));
}});

// Messages ------------------------------------------------------------------------------------------------------------

const notices = make("div", {id: "notices"});
notices.setAttribute("role", "status");

/** Tell the user how something went; `bad` messages stay until they are closed. */
export function notice(text, bad) {
  const close = make("button", {type: "button", className: "quiet", textContent: "Close"});
  const line = make("p", {className: bad ? "notice bad" : "notice"}, make("span", {textContent: text}), close);
  close.addEventListener("click", () => line.remove());
  while (notices.childElementCount > 2) notices.firstElementChild.remove();
  notices.append(line);
  if (!bad) setTimeout(() => line.remove(), 8000);
}

/** What to say of an error of `get` or `post`. */
export const reason = (error) => error instanceof Refused ? error.message : "the monitor cannot be reached";

/** POST to `path` for the user: what was done is told, and what was refused. `describe(reply)` is [text, bad]. */
export async function act(button, path, fields, describe) {
  button.setAttribute("aria-busy", "true");
  try {
    notice(...describe(await post(path, fields)));
  } catch (error) {
    notice("Not done: " + reason(error) + ".", true);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/** Have `button` suspend or resume (`verb`) what `chosen()` names, as [[key, name], ...]. `kind`: "node", "server". */
export function actsOn(button, verb, kind, chosen) {
  const past = verb + (verb === "resume" ? "d" : "ed");
  button.addEventListener("click", () => {
    const items = chosen(), names = items.length === 1 ? kind + " " + items[0][1] : items.length + " " + kind + "s";
    act(button, verb + "_" + kind, {[kind + "s"]: JSON.stringify(items.map((item) => item[0]))}, (acted) =>
      acted.length === items.length ? [names + " " + past, false] : [acted.length + " of " + names + " " + past, true]);
  });
}

/** Let the buttons that suspend and resume the `kind` that a page is about be pressed only where that does something. */
export function offerActions(kind, status) {
  $("suspend-" + kind).disabled = status !== "Initialized";
  $("resume-" + kind).disabled = status !== "Suspended";
}

/** Buttons "suspend" and "resume" for what is ticked in `table`; returns what tells them how much that is. */
export function ticksActions(kind, table) {
  const buttons = ["suspend", "resume"].map($);
  for (const button of buttons) {
    actsOn(button, button.id, kind, () => [...table().ticked].map((key) => [key, table().label(key)]));
  }
  return (number) => countTicked(buttons, number);
}

/** Write on action buttons how many rows are ticked, and let them be pressed only when there is one. */
export function countTicked(buttons, number) {
  for (const button of buttons) {
    button.disabled = number === 0;
    button.textContent = button.dataset.label + (number ? " " + number : "");
  }
}

let goneAt = 0;

/** Say that what the page is about is not there (any more), or is. `what`: "node" or "server"; `name`: as the page's
 *  address has it; `known`: whether the monitor has known it. */
export function showGone(gone, what, name, known) {
  goneAt = gone ? goneAt || now() : 0;
  document.body.classList.toggle("gone", gone);
  document.body.classList.remove("loading");
  $("gone").hidden = !gone;
  if (gone) put("gone", known ? "This " + what + " is gone since " + clockTime(goneAt) + ". What you see was true then."
    : name ? "The monitor knows no " + what + " “" + name + "”."
    : "This page's address names no " + what + ": choose one on the cluster page.");
}

// Connection ----------------------------------------------------------------------------------------------------------

const STATES = {connecting: "Connecting…", live: "Live", polling: "Live, by polling", paused: "Not refreshing",
                lost: "Disconnected"};

const since = make("strong", {}), why = make("span", {}), retry = make("span", {className: "retry"});
const again = make("button", {type: "button", textContent: "Try now"});
const lost = make("div", {id: "lost", hidden: true}, make("p", {}, since, why), retry, again);
retry.setAttribute("aria-hidden", "true");          // a countdown is not to be read out
lost.setAttribute("role", "alert");

let retryAt = 0;

function showRetry() {
  const left = Math.ceil((retryAt - Date.now()) / 1000);
  retry.textContent = left > 0 ? "Next try in " + duration(left) : "Trying…";
}

function showState(state, detail) {
  $("state").dataset.state = state;
  put("state", STATES[state]);
  $("refresh").hidden = state !== "paused";
  document.body.classList.toggle("stale", state === "lost");
  if (state === "lost") {
    retryAt = detail.retryAt;
    const told = "No connection to the monitor since " + clockTime(detail.since / 1000) + ".";
    if (since.textContent !== told) since.textContent = told;       // an alert that has not changed is not read again
    why.textContent = " What you see was true then." + (detail.why ? " The monitor says: " + detail.why + "." : "");
    showRetry();
  }
  lost.hidden = state !== "lost";
}

setInterval(() => lost.hidden || showRetry(), 1000);

// Start ---------------------------------------------------------------------------------------------------------------

/** Sign in and follow the changes; `onData(data, full)` and `fields()` (after the sign-in) as for Feed. Gives that. */
export async function follow(onData, fields) {
  $("main").before(lost, notices);
  const feed = new Feed((data, full) => {
    document.body.classList.remove("loading");
    document.body.classList.toggle("readonly", !session.can_act);
    onData(data, full);
  }, showState);
  again.addEventListener("click", () => feed.once());
  $("refresh").addEventListener("click", () => feed.once());
  try {
    await start();
    if (fields) feed.fields = await fields();
    feed.start();
  } catch (error) {
    feed.lose(error);
  }
  return feed;
}
