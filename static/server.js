/** The page of one server: its running tasks, which can be terminated. */

import {post, session} from "./api.js";
import {argumentsOf, count, plural, showAgo, showAt, showRunning} from "./format.js";
import {$, act, actsOn, countTicked, follow, link, loading, notice, offerActions, put, reason, showGone, showStatus,
        timeColumn} from "./page.js";
import {LiveTable} from "./table.js";

const NAMED = 5;                                // so many tasks or jobs are named in a sentence

const COLUMNS = {
  name: {show: (task) => task.name},
  arguments: {show: argumentsOf},
  start: timeColumn((task) => task.start_time, showAt),
  running: {...timeColumn((task) => task.start_time, showRunning), sort: (task) => -task.start_time},
  task: {show: (task) => task.task},
};

const server = new URLSearchParams(location.search).get("location") || "";
let seen = false;                               // whether the monitor has known this server
let plain = 0;                                  // jobs that run there and are no tasks
let asked = [];                                 // ids of the tasks that the question on the page is about

const table = new LiveTable($("tasks"), (task) => task.task, COLUMNS, {
  sort: "start",
  label: (task) => task.name,
  changed() {
    countTicked([$("terminate")], table.ticked.size);
    $("empty").hidden = table.records.size > 0 || plain > 0 || loading();
  },
});

function showServer(info) {
  seen = true;
  document.title = info.location + " – pycoslite";
  put("name", "Server " + info.location);
  $("node").href = link("node.html", {host: info.node});
  put("node", "Node " + info.name);
  showStatus($("status"), info.status);
  offerActions("server", info.status);
  for (const field of ["submitted", "running", "done", "failed"]) put(field, count(info["tasks_" + field]));
  $("failed").classList.toggle("bad", info.tasks_failed > 0);
  $("failures").href = link("history.html", {state: "failed", location: info.location});
  showAgo($("update"), info.update_time);
  const shown = info.tasks.length;
  put("shown", shown < info.tasks_listed ? count(shown) + " of " + count(info.tasks_listed) : count(shown));
  plain = Math.max(0, info.tasks_running - info.tasks_listed);
  $("plain").hidden = plain === 0;
  const names = info.jobs.slice(0, NAMED).join(", ") + (info.jobs.length > NAMED ? ", …" : "");
  put("plain", plural(plain, "job") + " without a task" + (names ? ": " + names : "") +
      ". What has no task, as a plain function, cannot be terminated here; the history lists it when it fails.");
  $("hidden-arguments").hidden = session.show_task_args;
  table.replace(info.tasks);
}

/** Ask for the figures and show them; gives them. */
async function load() {
  try {
    const info = await post("server_info", {location: server, limit: $("limit").value});
    showGone(info.location === undefined, "server", server, seen);
    if (info.location !== undefined) showServer(info);
    return info;
  } catch (error) {
    notice("This server's figures are not up to date: " + reason(error) + ".", true);
    return {};
  }
}

function ask() {
  asked = [...table.ticked];
  const names = asked.slice(0, NAMED).map((id) => table.label(id)).join(", ");
  put("confirm-title", "Terminate " + plural(asked.length, "task") + "? What is not finished is lost.");
  put("confirm-names", asked.length > NAMED ? names + " and " + (asked.length - NAMED) + " more" : names);
  $("confirm").hidden = false;
  $("confirm-no").focus();
}

function closeQuestion() {
  $("confirm").hidden = true;
  $("terminate").focus();
}

function terminate() {
  const ids = asked;
  closeQuestion();
  act($("terminate"), "terminate_tasks", ids.map((id) => ["task", id]), (accepted) => [
    accepted.length === ids.length ? plural(ids.length, "task") + " told to end"
      : accepted.length + " of " + plural(ids.length, "task") + " told to end; the others had ended already", false]);
}

$("terminate").addEventListener("click", ask);
$("confirm-no").addEventListener("click", closeQuestion);
$("confirm-yes").addEventListener("click", terminate);
$("confirm").addEventListener("keydown", (event) => event.key === "Escape" && closeQuestion());
$("limit").addEventListener("change", load);
for (const verb of ["suspend", "resume"]) actsOn($(verb + "-server"), verb, "server", () => [[server, server]]);

// Only this node's changes are of interest, and the monitor knows which node that is.
if (server) follow(load, async () => ({host: (await load()).node || ""}));
else showGone(true, "server");
