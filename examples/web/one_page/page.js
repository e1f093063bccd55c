// The page: shows what the session says. Text comes into it as text, never as markup.

import { Away, Refused, Session } from "./session.js";

const $ = (id) => document.getElementById(id);
const { keyturn } = await (await fetch("/config.json")).json();
const session = new Session(keyturn, changed);
let tokens = null;
let refreshes = 0;

function changed(now, word) {
  const before = tokens;
  tokens = now;
  $("away").hidden = word !== "away";
  if (word === "away") return;
  show(now === null ? "signed-out" : "signed-in");
  if (now === null) {
    refreshes = 0;
    $("who").textContent = "…";
    $("journal").replaceChildren();
    if (word === "ended") complain("The session has ended. Please sign in again.");
    else if (word === "logged out in another tab") complain("You logged out in another tab.", "alert calm");
    return;
  }
  if (word === "refreshed" || word === "resumed") refreshes += 1;
  $("refreshes").textContent = refreshes === 1 ? "once" : `${refreshes} times`;
  $("session").textContent = now.session_id;
  note(word[0].toUpperCase() + word.slice(1));
  if (before?.session_id !== now.session_id) ask();
  tick();
}

async function ask() {
  try {
    const answer = await session.fetch(`${keyturn}/auth/me`);
    if (!answer.ok) return;
    const { user } = await answer.json();
    $("who").textContent = user.email;
    note(`Keyturn says: ${user.email}, ${user.role}`);
  } catch {
    $("away").hidden = false;
  }
}

function show(id) {
  for (const section of ["waiting", "signed-out", "signed-in"]) $(section).hidden = section !== id;
}

function complain(text, look = "alert") {
  $("problem").className = look;
  $("problem").textContent = text;
  $("problem").hidden = text === "";
}

function note(text) {
  const [item, time, what] = ["li", "time", "span"].map((name) => document.createElement(name));
  time.textContent = new Date().toLocaleTimeString();
  what.textContent = text;
  item.append(what, time);
  $("journal").prepend(item);
  while ($("journal").children.length > 8) $("journal").lastChild.remove();
}

function tick() {
  if (tokens === null) return;
  const seconds = Math.round((tokens.expires - Date.now()) / 1000);
  $("expires").textContent = seconds > 0 ? `in ${seconds} s` : "now";
  $("ends").textContent = new Date(tokens.ends).toLocaleString();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("login").querySelector("button");
  button.disabled = true;
  complain("");
  try {
    await session.login($("email").value, $("password").value, $("remember").checked);
    $("password").value = "";
  } catch (error) {
    complain(error instanceof Refused ? error.message : "Keyturn does not answer. Please try again in a moment.");
  } finally {
    button.disabled = false;
  }
});

$("logout").addEventListener("click", async () => {
  try {
    await session.logout();
  } catch {
    $("away").hidden = false;
  }
});

$("ask").addEventListener("click", ask);
setInterval(tick, 1000);

// Without a verdict nobody is signed out: the page waits for Keyturn.
for (;;) {
  try {
    await session.resume();
    break;
  } catch (error) {
    if (!(error instanceof Away)) throw error;
    await new Promise((later) => setTimeout(later, 1000 * error.seconds));
  }
}
