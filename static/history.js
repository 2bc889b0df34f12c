/** The history page: tasks that run or have ended, with their outcome, and what else has happened. */

import {get} from "./api.js";
import {argumentsOf, count, now, showAt, took} from "./format.js";
import {$, follow, link, linkColumn, loading, make, notice, put, reason, showStatus, timeColumn} from "./page.js";
import {LiveTable} from "./table.js";
import {Timeline} from "./timeline.js";

const LOG_LINES = 500;                          // kept in the page
const TYPING_MS = 250;

const asked = new URLSearchParams(location.search);
const lasted = (task) => task.start_time ? (task.end_time || now()) - task.start_time : null;
const when = (task) => task.start_time || task.end_time;        // the start of a plain function's job is not known
const lastLineOf = (text) => text.trimEnd().split("\n").pop();

/** In one line: the result; of a failure what its traceback ends with, if that says more than the exception's name. */
function outcome(task) {
  const last = lastLineOf(task.detail || "");
  return last.startsWith(task.error + ":") ? last : task.error || task.result || (task.detail ? "Details" : "");
}

/** A result as it is; an error with its traceback behind it. */
function showOutcome(cell, task) {
  if (!task.detail) cell.textContent = outcome(task);
  else {
    const details = make("details", {}, make("summary", {textContent: outcome(task)}),
                         make("pre", {textContent: task.detail}));
    details.addEventListener("toggle", () => cell.classList.toggle("open", details.open));
    cell.replaceChildren(details);
  }
}

function showWhen(cell, task) {
  showAt(cell, when(task));
  cell.classList.toggle("ended", !task.start_time);
}

const tasks = new LiveTable($("tasks"), (task) => task.task + " " + task.start_time, {
  name: {show: (task) => task.name},
  state: {show: (task) => task.state, paint: (cell, task) => showStatus(cell, task.state)},
  arguments: {show: argumentsOf},
  outcome: {show: outcome, paint: showOutcome},
  server: linkColumn((task) => task.location, "server.html", (task) => ({location: task.location})),
  start: {show: (task) => String(when(task)), sort: when, paint: showWhen},
  took: {show: (task) => took(lasted(task)), sort: lasted},
}, {
  sort: "start",
  descending: true,
  label: (task) => task.name,
  changed() { $("no-tasks").hidden = tasks.records.size > 0 || loading(); },
});

const log = new LiveTable($("log"), (line) => String(line.seq), {
  time: timeColumn((line) => line.time, showAt),
  subject: {show: (line) => line.subject},
  text: {show: (line) => line.text},
}, {
  sort: "time",
  descending: true,
  label: (line) => line.subject,
  mark: (row, line) => row.classList.add(line.level),
  changed() { $("no-log").hidden = log.records.size > 0 || loading(); },
});

const timeline = new Timeline($("timeline").querySelector("canvas"), $("pointed"));
let lastLine = 0;

async function loadTasks() {
  const found = await get("api/tasks", {state: $("which").value, text: $("text").value, limit: $("limit").value,
                                        host: asked.get("host") || "", location: asked.get("location") || ""});
  const shown = found.tasks.length;
  put("shown", (shown < found.count ? count(shown) + " of " : "") + count(found.count));
  tasks.replace(found.tasks);
  const timed = found.tasks.filter((task) => task.start_time);
  $("timeline").hidden = timed.length === 0;
  timeline.draw(timed);
}

async function loadLog(afresh) {
  if (afresh) lastLine = 0;
  const found = await get("api/log", {after: lastLine, limit: LOG_LINES});
  lastLine = found.seq;
  const excess = Math.max(0, log.records.size + found.log.length - LOG_LINES);
  if (afresh) log.replace(found.log);
  else log.update(found.log, [...log.records.keys()].slice(0, excess));
}

async function load(data, full) {
  try {
    await Promise.all([loadTasks(), loadLog(full)]);
  } catch (error) {
    notice("The history is not up to date: " + reason(error) + ".", true);
  }
}

let typing = 0;

/** The choice has changed: ask for the tasks, and let the address name the choice. */
function choose() {
  asked.set("state", $("which").value);
  asked.set("text", $("text").value);
  history.replaceState(null, "", link("history.html", [...asked].filter((pair) => pair[1])));
  clearTimeout(typing);
  typing = setTimeout(load, TYPING_MS);
}

$("which").value = asked.get("state") || "";
$("text").value = asked.get("text") || "";
for (const id of ["which", "text", "limit"]) $(id).addEventListener("input", choose);
$("only").hidden = !asked.get("host") && !asked.get("location");
$("only").firstElementChild.textContent = "Of " + (asked.get("location") || "node " + asked.get("host")) + " only;";

follow(load);
