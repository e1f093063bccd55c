// A client that keeps its tokens fresh, for browsers and Node 20 or newer. Nothing to install.
//
// Each refresh has a key of its own (Idempotency-Key), which is stored with the tokens before the request is sent. So an answer
// that was lost hours ago, or before a restart, is asked for again, and is no theft.
//
// This client ends, whatever happens: a call is sent twice at most, any number of calls that meet a 401 share one refresh, and a
// refresh that is refused is the last one.

export class Client {
  #url;
  #tokens;
  #changed;
  #refreshing = null;

  // url: Keyturn's. tokens: what `changed` was called with last, or what /auth/login answered, or null. changed: called with
  // what to store, as one record, or with null when the user has to sign in again. The client waits for it.
  constructor(url, tokens, changed = () => {}) {
    this.#url = url;
    this.#tokens = tokens;
    this.#changed = changed;
  }

  // As the built-in fetch, with the access token; `init.body` must be one that can be sent twice (no stream). Throws where
  // the refresh could not be answered: the tokens are kept, so the same call may be made again.
  async fetch(resource, init = {}) {
    const sent = this.#tokens;
    const answer = await this.#send(resource, init);
    if (answer.status !== 401 || sent === null) return answer;
    // Another call may have refreshed in the meantime.
    if (this.#tokens?.access_token === sent.access_token) await this.#refresh();
    // There is no third attempt, whatever the second answer is.
    return this.#tokens === null ? answer : this.#send(resource, init);
  }

  #send(resource, init) {
    const headers = new Headers(init.headers);
    if (this.#tokens !== null) headers.set("Authorization", `Bearer ${this.#tokens.access_token}`);
    return fetch(resource, { ...init, headers });
  }

  #refresh() {
    this.#refreshing ??= this.#renew().finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  async #renew() {
    await this.#rotate();
    // A late retry gets the answer of its rotation, whose access token is over by now. So one more refresh is due.
    if (this.#tokens?.expires_in === 0) await this.#rotate();
  }

  async #rotate() {
    // First a new key beside the refresh token, stored. Then the request. The key goes when the answer is stored in its place.
    if (this.#tokens.retry_key === undefined) {
      this.#tokens = { ...this.#tokens, retry_key: crypto.randomUUID() };
      await this.#changed(this.#tokens);
    }
    // The built-in fetch and not the one above: a refused refresh is a 401 too, and must not lead to another refresh.
    const answer = await fetch(`${this.#url}/auth/refresh`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": this.#tokens.retry_key },
      body: JSON.stringify({ refresh_token: this.#tokens.refresh_token }),
    });
    if (answer.ok) this.#tokens = await answer.json();
    else if (answer.status === 401) this.#tokens = null;
    else throw new Error(`the refresh was answered with ${answer.status}`);
    await this.#changed(this.#tokens);
  }
}
