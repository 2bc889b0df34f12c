/** Requests to the monitor that has served this page, and the sign-in that they need.
 *
 *  The monitor prints an address that ends in `#token=...`. A fragment never travels: `start` takes it out of the
 *  address bar and exchanges it for a cookie that scripts cannot read. What changes anything also carries a second
 *  value, which only pages of this origin can ask for. All addresses are relative, so that a proxy may put a prefix
 *  before them. */

const TIMEOUT_MS = 10000;           // a server that has not answered by then counts as not there
const PAGES = /^(cluster|node|server|history)\.html(\?|$)/;

/** What the monitor tells about itself: poll_sec, show_task_args, ...; filled by `start`. */
export const session = {};

/** The monitor answered, and refused: `status` is HTTP's, the message one sentence for the user. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function sentence(text) {                       // of a refusal; a proxy's own has none for us
  try {
    return JSON.parse(text).error.replace(/\.$/, "");
  } catch (error) {
    return "";
  }
}

async function request(path, options, wait_ms) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), TIMEOUT_MS + (wait_ms || 0));
  try {
    const reply = await fetch(path, {credentials: "same-origin", cache: "no-store", signal: abort.signal, ...options});
    const text = await reply.text();
    if (reply.ok) return text ? JSON.parse(text) : null;
    throw new Refused(reply.status, sentence(text) || "the monitor answered with status " + reply.status);
  } finally {
    clearTimeout(timer);
  }
}

/** The part of this page's address that names it: "node.html?host=...". */
const here = () => location.pathname.replace(/^.*\//, "") + location.search;

/** Go where the token can be entered, and come back from there. */
export function askForToken() {
  location.replace("signin.html#next=" + encodeURIComponent(here()));
}

async function signedIn(path, options, wait_ms) {
  try {
    return await request(path, options, wait_ms);
  } catch (error) {
    if (error.status === 401) {
      askForToken();
      return new Promise(() => {});         // the page is about to go: nobody needs an answer any more
    }
    throw error;
  }
}

/** GET `path` with `fields`; the JSON of the answer, which may be late by `wait_ms`. Raises Refused, or fetch's error
 *  when the server is not reached. */
export function get(path, fields, wait_ms) {
  const query = new URLSearchParams(fields).toString();
  return signedIn(query ? path + "?" + query : path, {}, wait_ms);
}

/** POST `fields` (an object or a list of pairs) to `path`; like `get` otherwise. */
export function post(path, fields) {
  return signedIn(path, {method: "POST", body: new URLSearchParams(fields),
                         headers: {"X-Pycoslite-Token": session.csrf || ""}});
}

/** Exchange `token` for a cookie; raises Refused when it is the wrong one. */
export const signIn = (token) => request("api/sign_in", {method: "POST", body: new URLSearchParams({token})});

/** Ask anew what the monitor tells about itself. */
export async function refreshSession() {
  Object.assign(session, await get("api/session"));
  return session;
}

/** What a fragment says, as URLSearchParams; it is taken out of the address bar and of the history. */
export function takeFragment() {
  const found = new URLSearchParams(location.hash.slice(1));
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return found;
}

/** Sign in if the address says how, and fill `session`. Where the token is wrong or missing the page changes. */
export async function start() {
  const token = takeFragment().get("token");
  if (token) {
    await signIn(token).catch((error) => {
      if (error.status !== 401 && error.status !== 403) throw error;
    });
  }
  return refreshSession();
}

// Who opens the printed address where one of these pages is open already only changes its fragment.
addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());

/** `page`, as `askForToken` has noted it, if it is one of this monitor's, else the first page. */
export const safePage = (page) => PAGES.test(page || "") ? page : "cluster.html";
