/** The page of one node: what it has free, and one row for each of its servers. */

import {bytes, count, percent, showAgo} from "./format.js";
import {$, actsOn, countColumn, failedColumn, follow, link, linkColumn, loading, offerActions, put, showGone,
        showStatus, statusColumn, ticksActions, timeColumn} from "./page.js";
import {LiveTable} from "./table.js";

const COLUMNS = {
  location: linkColumn((server) => server.location, "server.html", (server) => ({location: server.location})),
  status: statusColumn,
  submitted: countColumn((server) => server.tasks_submitted),
  running: countColumn((server) => server.tasks_running),
  done: countColumn((server) => server.tasks_done),
  failed: failedColumn,
  update: timeColumn((server) => server.update_time),
};

const host = new URLSearchParams(location.search).get("host") || "";
let node = null;                                // as it was last told

const countTicked = ticksActions("server", () => table);

const table = new LiveTable($("servers"), (server) => server.location, COLUMNS, {
  sort: "location",
  label: (server) => server.location,
  changed() {
    countTicked(table.ticked.size);
    put("shown", count(table.records.size));
    $("empty").hidden = table.records.size > 0 || loading();
  },
});

function showNode() {
  const name = node.name || node.addr;
  document.title = name + " – pycoslite";
  put("name", "Node " + name);
  put("addr", node.id);
  put("platform", node.platform || "–");
  showStatus($("status"), node.status);
  offerActions("node", node.status);
  for (const [kind, show] of [["cpu", percent], ["memory", bytes], ["swap", percent], ["disk", bytes]]) {
    put(kind, show(node.avail_info[kind]));
  }
  for (const field of ["submitted", "running", "done", "failed"]) put(field, count(node["tasks_" + field]));
  $("failed").classList.toggle("bad", node.tasks_failed > 0);
  $("failures").href = link("history.html", {state: "failed", host: node.id});
  showAgo($("update"), node.update_time);
}

function showData(data, full) {
  const told = data.nodes[0];
  if (full || data.gone.length) showGone(!told, "node", host, node);
  if (told) {
    node = told;
    showNode();
  }
  if (full && told) table.replace(data.servers);
  else table.update(data.servers || []);
}

for (const verb of ["suspend", "resume"]) {
  actsOn($(verb + "-node"), verb, "node", () => [[node.id, node.name || node.addr]]);
}

if (host) follow(showData, () => ({host}));
else showGone(true, "node");
