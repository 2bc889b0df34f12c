/** The stream of changes, kept alive.
 *
 *  States, as `onState(state, detail)` tells them:
 *
 *    connecting    nothing has come yet
 *    live          events come by themselves (server-sent events)
 *    polling       the stream does not get through (a proxy holds it back, or too many are open): requests wait for
 *                  changes
 *    paused        the user wants no automatic refresh: `once` asks for changes
 *    lost          no answer; detail.since (ms), detail.retryAt (ms), detail.why. Tried again for ever, but more seldom
 *
 *  A hidden page keeps no connection for long: browsers allow only six to one server, all their tabs together. */

import {Refused, get, refreshSession, session} from "./api.js";
import {setClock} from "./format.js";

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const FIRST_EVENT_MS = 6000;        // a stream that is silent for so long after its start is being held back
const HIDDEN_MS = 30000;
const WAIT_S = 20;                  // so long a request may wait for a change
const MISSED = 3;                   // so many missed signs of life mean that the connection is lost

export class Feed {
  /** `onData(data, full)` gets what events carry: everything (full), or what has changed. */
  constructor(onData, onState) {
    this.onData = onData;
    this.onState = onState;
    this.fields = {};               // what to ask for, as in host=
    this.state = "connecting";
    this.source = null;
    this.timer = 0;                 // of the next try, request, or sign of life
    this.turn = 0;                  // changes with every start and stop: what an older one asked for is of no interest
    this.failures = 0;
    this.since = Date.now();        // when it was last in touch
    this.seq = this.instance = null;
    this.streams = true;
    document.addEventListener("visibilitychange", () => this.seen(!document.hidden));
    addEventListener("pagehide", () => this.stop());
    addEventListener("pageshow", (event) => event.persisted && this.start());
  }

  /** Start, or start again with what `session.poll_sec` says now. */
  start() {
    this.stop();
    if (!(session.poll_sec > 0) && this.seq !== null) this.enter("paused");
    else if (session.poll_sec > 0 && this.streams) this.listen();
    else this.poll(this.turn);
  }

  stop() {
    this.turn += 1;
    clearTimeout(this.timer);
    if (this.source) this.source.close();
    this.source = null;
  }

  /** Ask for changes now, whatever the state. */
  async once() {
    if (this.state === "lost") this.retry();
    else await this.ask(this.turn, 0).catch((error) => this.lose(error));
  }

  seen(visible) {
    clearTimeout(this.hiding);
    if (!visible) this.hiding = setTimeout(() => { this.stop(); this.asleep = true; }, HIDDEN_MS);
    else if (this.asleep) this.start();
    if (visible) this.asleep = false;
  }

  enter(state, detail) {
    const changed = state !== this.state;
    this.state = state;
    if (changed || detail) this.onState(state, detail || {});
  }

  listen() {
    const source = new EventSource("api/events?" + new URLSearchParams({interval: session.poll_sec, ...this.fields}));
    let first = true;
    this.source = source;
    const on = (name, handle) => source.addEventListener(name, (event) => {
      if (source !== this.source) return;
      first = false;
      this.alive();
      handle(JSON.parse(event.data || "{}"));
    });
    const fallBack = () => {
      this.streams = false;
      this.start();
    };
    on("full", (data) => this.take(data, true));
    on("change", (data) => this.take(data, Boolean(data.full)));
    on("alive", (data) => setClock(data.now));
    source.onerror = () => {
      if (source !== this.source) return;
      if (first) fallBack();
      else this.lose(new Error("closed"));
    };
    this.timer = setTimeout(fallBack, FIRST_EVENT_MS);
  }

  /** Something has come by the stream. */
  alive() {
    clearTimeout(this.timer);
    this.enter("live");
    this.failures = 0;
    this.since = Date.now();
    this.timer = setTimeout(() => this.lose(new Error("silent")), MISSED * 1000 * session.alive_sec);
  }

  async poll(turn) {
    const started = Date.now();
    try {
      await this.ask(turn, this.seq === null ? 0 : WAIT_S);
    } catch (error) {
      if (turn === this.turn) this.lose(error);
      return;
    }
    if (turn !== this.turn) return;
    this.enter(session.poll_sec > 0 ? "polling" : "paused");
    if (session.poll_sec > 0) {
      this.timer = setTimeout(() => this.poll(turn), Math.max(0, started + 1000 * session.poll_sec - Date.now()));
    }
  }

  async ask(turn, wait) {
    const known = this.seq === null ? {} : {seq: this.seq, instance: this.instance};
    const data = await get("api/changes", {...known, ...this.fields, wait}, 1000 * wait);
    if (turn !== this.turn) return;
    this.failures = 0;
    this.since = Date.now();
    this.take(data, data.full);
  }

  take(data, full) {
    setClock(data.now);
    this.seq = data.seq;
    this.instance = data.instance;
    const pace = session.poll_sec;
    Object.assign(session, {poll_sec: data.poll_sec, show_task_args: data.show_task_args, status: data.status});
    this.onData(data, full);
    if (pace !== session.poll_sec && pace > 0 !== session.poll_sec > 0) this.start();    // another viewer's doing
  }

  lose(error) {
    this.stop();
    const wait = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
    this.failures += 1;
    const why = error instanceof Refused ? error.message : "";
    this.enter("lost", {since: this.since, retryAt: Date.now() + wait, why});
    this.timer = setTimeout(() => this.retry(), wait);
  }

  /** A stream does not tell why it failed; an ordinary request does, and notices a token that is no longer good. */
  async retry() {
    this.stop();
    const turn = this.turn;
    try {
      await refreshSession();
    } catch (error) {
      if (turn === this.turn) this.lose(error);
      return;
    }
    if (turn !== this.turn) return;
    this.streams = true;
    this.start();
  }
}
