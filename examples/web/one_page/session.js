// A session in split mode: the access token in this page's memory, the refresh token in a cookie that no script can read.
//
// All tabs of the browser share the cookie. One tab at a time refreshes (a lock), and gives the new access token to the
// others (a channel), so that they need no refresh of their own. Neither the lock nor the channel stores anything.

const LOCK = "keyturn-refresh";
const PATIENCE = 10_000; // milliseconds for an answer; a refresh whose answer is lost can be sent again

// Keyturn is away or full, or the network is: no verdict on the session, which goes on.
export class Away extends Error {
  constructor(seconds) {
    super("Keyturn does not answer");
    this.seconds = seconds;
  }
}

// Keyturn refused a login. The message is a sentence for the user.
export class Refused extends Error {}

export class Session {
  #url;
  #changed;
  #channel = new BroadcastChannel("keyturn-session");
  #tokens = null; // the last answer with an access token, and when that token expires
  #timer = 0;

  // url: Keyturn's. changed: called with the tokens and a word for what happened ("signed in", "refreshed", "refreshed by
  // another tab", "logged out", "logged out in another tab", "ended"), with null tokens where nobody is signed in; and
  // with "away" while Keyturn gives no verdict.
  constructor(url, changed) {
    this.#url = url;
    this.#changed = changed;
    this.#channel.onmessage = ({ data }) => {
      if (data === null) this.#set(null, "logged out in another tab");
      else if (data.session_id === this.#tokens?.session_id) this.#set(data, "refreshed by another tab");
      else this.#set(data, "signed in by another tab");
    };
  }

  // Take up the session of the cookie, if there is one.
  async resume() {
    await this.#refresh(null, "resumed");
  }

  async login(email, password, remember) {
    const answer = await this.#post("/auth/login", { email, password, mode: "split", remember });
    const body = await answer.json();
    if (!answer.ok) throw new Refused(body.error_description);
    this.#set(this.#withEnd(body), "signed in");
    this.#channel.postMessage(this.#tokens);
  }

  // End the session, while no tab refreshes it. `mode` keeps to the cookie of this application, where the host has others.
  async logout() {
    await navigator.locks.request(LOCK, async () => {
      const bearer = this.#tokens === null ? {} : { Authorization: `Bearer ${this.#tokens.access_token}` };
      const answer = await this.#post("/auth/logout", { mode: "split" }, bearer);
      if (!answer.ok && ![400, 401].includes(answer.status)) throw new Away(1); // 400, 401: nobody was signed in any more
      this.#set(null, "logged out");
      this.#channel.postMessage(null);
    });
  }

  // As the built-in fetch, with the access token. A call is sent twice at most, whatever it is answered.
  async fetch(resource, init = {}) {
    const sent = this.#tokens;
    const answer = await this.#send(resource, init);
    if (answer.status !== 401 || sent === null) return answer;
    await this.#refresh(sent, "refreshed");
    return this.#tokens === null ? answer : this.#send(resource, init);
  }

  #send(resource, init) {
    const headers = new Headers(init.headers);
    if (this.#tokens !== null) headers.set("Authorization", `Bearer ${this.#tokens.access_token}`);
    return fetch(resource, { signal: AbortSignal.timeout(PATIENCE), ...init, headers });
  }

  // Refresh, unless other tokens than `stale` have come from another tab meanwhile.
  async #refresh(stale, word) {
    await navigator.locks.request(LOCK, async () => {
      if (this.#tokens !== stale) return;
      const answer = await this.#post("/auth/refresh", { mode: "split" });
      if (answer.ok) {
        this.#set(this.#withEnd(await answer.json()), word);
        this.#channel.postMessage(this.#tokens);
      } else if (answer.status === 401 || answer.status === 400) {
        // 401: the session is over. 400: there is no cookie.
        this.#set(null, stale === null ? "signed out" : "ended");
      } else {
        throw new Away(Number(answer.headers.get("Retry-After")) || 1);
      }
    });
  }

  // Refresh at four fifths of the access token's life. An outage only means a later attempt.
  #schedule(seconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(async () => {
      try {
        await this.#refresh(this.#tokens, "refreshed");
      } catch (error) {
        if (!(error instanceof Away)) throw error;
        this.#changed(this.#tokens, "away");
        this.#schedule(error.seconds * (1 + Math.random())); // so that not all browsers ask at once
      }
    }, 1000 * seconds);
  }

  #set(tokens, word) {
    this.#tokens = tokens;
    clearTimeout(this.#timer);
    if (tokens !== null) this.#schedule(Math.max(0, (tokens.expires - Date.now()) / 1000 - tokens.expires_in / 5));
    this.#changed(tokens, word);
  }

  #withEnd(body) {
    const now = Date.now();
    return { ...body, expires: now + 1000 * body.expires_in, ends: now + 1000 * body.session_expires_in };
  }

  async #post(path, body, headers = {}) {
    try {
      const answer = await fetch(this.#url + path, {
        method: "POST",
        credentials: "include",
        signal: AbortSignal.timeout(PATIENCE),
        headers: { "Content-Type": "application/json", ...headers },
        body: JSON.stringify(body),
      });
      if (answer.status < 500) return answer;
      throw new Away(Number(answer.headers.get("Retry-After")) || 1);
    } catch (error) {
      throw error instanceof Away ? error : new Away(1);
    }
  }
}
