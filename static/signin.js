/** The sign-in page: takes the printed address, or the token in it, and goes on to the page that was asked for. */

import {safePage, signIn, takeFragment} from "./api.js";

const next = safePage(takeFragment().get("next"));
const field = document.getElementById("token"), refused = document.getElementById("refused");

/** The token in what was pasted: an address, "token=...", or the token itself. */
function tokenIn(text) {
  const named = /token=([^&\s]+)/.exec(text);
  return named ? decodeURIComponent(named[1]) : text.trim();
}

async function submit(event) {
  event.preventDefault();
  refused.textContent = "";
  try {
    await signIn(tokenIn(field.value));
    location.replace(next);
  } catch (error) {
    refused.textContent = error.status === 401 || error.status === 403 ? "That is not this monitor's token."
      : error.status ? error.message + "." : "The monitor cannot be reached: has the program ended?";
    field.select();
  }
}

document.getElementById("form").addEventListener("submit", submit);
document.getElementById("state").textContent = "Not signed in";
field.focus();
