// One page, both modes. With cookies there is nothing to do but to call. In split mode the page keeps the access token.

import { Session } from "./session.js";

const $ = (id) => document.getElementById(id);
const say = (text) => ($("said").textContent = text);

const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// Mode `cookie`: the browser sends both cookies, and nginx asks Keyturn, which refreshes on the way.
const cookie = {
  async login(email, password) {
    const answer = await post("/auth/login", { email, password, mode: "cookie" });
    if (!answer.ok) throw new Error((await answer.json()).error_description);
  },
  fetch: (path) => fetch(path),
  async logout() {
    const answer = await post("/auth/logout", { mode: "cookie" });
    if (answer.status >= 500) throw new Error("Keyturn is away. You are still signed in.");
  },
};

// Mode `split`: the access token is in memory, and a refresh sends the cookie that goes to /auth alone.
const split = new Session("", () => {});

const modes = { cookie, split };
const chosen = () => modes[document.querySelector("input[name=mode]:checked").value];

// What a call was answered. 401: sign in. 503: nothing is lost, so try again.
async function call() {
  const answer = await chosen().fetch("/hello");
  if (answer.ok) return `hello ${(await answer.json()).hello}`;
  return answer.status === 401 ? "You are not signed in." : `No answer now (${answer.status}). You are still signed in.`;
}

async function attempt(act) {
  say("…");
  try {
    say(await act());
  } catch (error) {
    say(error.message);
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await chosen().login($("email").value, $("password").value, true);
    $("password").value = "";
    return "Signed in.";
  });
});
$("hello").addEventListener("click", () => attempt(call));
$("logout").addEventListener("click", () => attempt(async () => (await chosen().logout(), "Logged out.")));
attempt(async () => (await split.resume(), "Ready."));
