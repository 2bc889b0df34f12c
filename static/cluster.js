/** The cluster page: totals, the last minutes, one row for each node. */

import {askForToken, get, post, session} from "./api.js";
import {Chart} from "./chart.js";
import {bytes, count, now, percent, rate} from "./format.js";
import {$, countColumn, failedColumn, follow, linkColumn, loading, notice, put, reason, showStatus, statusColumn,
        ticksActions, timeColumn} from "./page.js";
import {LiveTable} from "./table.js";

const TOTALS = ["nodes", "servers", "submitted", "pending", "running", "done", "failed"];

const free = (name, show) => ({show: (node) => show(node.avail_info[name]), sort: (node) => node.avail_info[name]});

let shared = new Set();                         // addresses that several nodes have, which then show their port

const COLUMNS = {
  addr: linkColumn((node) => shared.has(node.addr) ? node.id : node.addr, "node.html", (node) => ({host: node.id})),
  name: {show: (node) => node.name, paint: (cell, node) => { cell.textContent = cell.title = node.name; }},
  status: statusColumn,
  servers: countColumn((node) => node.servers),
  cpu: {
    ...free("cpu", percent),
    paint(cell, node) {
      cell.textContent = percent(node.avail_info.cpu);
      cell.style.setProperty("--share", (node.avail_info.cpu || 0) / 100);
    },
  },
  memory: free("memory", bytes),
  swap: free("swap", percent),
  disk: free("disk", bytes),
  submitted: countColumn((node) => node.tasks_submitted),
  running: countColumn((node) => node.tasks_running),
  done: countColumn((node) => node.tasks_done),
  failed: failedColumn,
  update: timeColumn((node) => node.update_time),
};

const countTicked = ticksActions("node", () => table);

const table = new LiveTable($("nodes"), (node) => node.id, COLUMNS, {
  sort: "addr",
  descending: true,
  filter: (node) => [node.addr, node.name, node.status].join(" "),
  label: (node) => shared.has(node.addr) ? node.id : node.name || node.addr,
  mark: (row, node) => row.classList.toggle("old", isOld(node)),
  changed() {
    noteShared();
    countTicked(table.ticked.size);
    $("sort").value = table.sortBy;
    $("descending").checked = table.descending;
    put("shown", (table.wanted ? count(table.order.length) + " of " : "") + count(table.records.size));
    $("empty").hidden = table.records.size > 0 || loading();
    $("unmatched").hidden = table.records.size === 0 || table.order.length > 0;
  },
});

function noteShared() {
  const seen = new Set(), twice = new Set();
  for (const node of table.records.values()) (seen.has(node.addr) ? twice : seen).add(node.addr);
  const same = twice.size === shared.size && [...twice].every((addr) => shared.has(addr));
  shared = twice;
  if (!same) table.repaint();
}

/** Whether nothing has been heard of the node for longer than its pulses leave room for. */
function isOld(node) {
  return session.stale_sec > 0 && node.update_time > 0 && now() - node.update_time > session.stale_sec;
}

function showSettings() {
  if (document.activeElement !== $("interval")) $("interval").value = session.poll_sec;
  $("arguments").checked = session.show_task_args;
  $("interval").disabled = $("arguments").disabled = Boolean(session.read_only);
}

function showData(data, full) {
  if (full) table.replace(data.nodes);
  else table.update(data.nodes, data.gone);
  for (const name of TOTALS) put("total-" + name, count(data.totals[name]));
  $("total-failed").classList.toggle("bad", data.totals.failed > 0);
  document.title = count(data.totals.running) + " running – pycoslite";
  put("name", session.name);
  showStatus($("status"), data.status);
  $("ended").hidden = data.status !== "Closed";
  showSettings();
  showHistory();
}

const charts = {done_rate: new Chart($("done-rate"), (value) => rate(value) + " /s"),
                cpu_used: new Chart($("cpu-used"), percent, 100)};
let historyDue = 0;

/** Ask for the history when there can be another value in it. */
async function showHistory() {
  if (Date.now() < historyDue) return;
  historyDue = Infinity;
  try {
    const history = await get("api/history", {scope: $("scope").value});
    for (const [name, chart] of Object.entries(charts)) chart.draw(history[name], history.step, history.now);
    $("charts").hidden = false;
    historyDue = Date.now() + 1000 * history.step;
  } catch (error) {
    historyDue = Date.now() + 5000;             // charts stay as they are; that the connection is lost is told above
  }
}

async function changeSettings(feed) {
  const wanted = {timeout: Number($("interval").value) || 0, show_task_args: $("arguments").checked};
  try {
    await post("update", wanted);
    session.poll_sec = wanted.timeout;
    session.show_task_args = wanted.show_task_args;
    feed.start();
  } catch (error) {
    notice("Settings not changed: " + reason(error) + ".", true);
    showSettings();
  }
}

$("filter").addEventListener("input", () => table.filter($("filter").value));
for (const id of ["sort", "descending"]) {
  $(id).addEventListener("change", () => table.sort($("sort").value, $("descending").checked));
}
$("scope").addEventListener("change", () => {
  historyDue = 0;
  showHistory();
});
setInterval(() => table.mark(), 5000);          // time alone makes a row old

$("sign-out").addEventListener("click", async () => {
  await post("api/sign_out").catch(() => {});           // where the monitor is gone, so is the session
  askForToken();
});

let saving = Promise.resolve();                 // one after the other: the last choice is to be the last to arrive

follow(showData).then((feed) => {
  $("settings").addEventListener("change", () => { saving = saving.then(() => changeSettings(feed)); });
  $("settings").addEventListener("submit", (event) => event.preventDefault());
});
