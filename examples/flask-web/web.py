"""A web app whose visitors sign in with Keyturn's cookies. It has no session, no secret and no script."""

import os
from typing import Any

import urllib3
from flask import Flask, Response, abort, make_response, redirect, request
from markupsafe import escape
from refresh_on_the_way import RefreshOnTheWay

KEYTURN = os.environ.get("KEYTURN", "http://127.0.0.1:8000")
ORIGIN = os.environ.get("ORIGIN", "http://127.0.0.1:3000")
PASSED_ON = ("Cookie", "Origin", "Sec-Fetch-Site", "User-Agent")
FORM = """<form method="post"><p role="alert">{problem}</p>
<label>E-mail <input name="email" type="email" autocomplete="username" required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Sign in</button></form>"""
HOME = """<p>You are {subject}, with the role {role}.</p>
<form method="post" action="/logout"><button>Log out</button></form>"""

app = Flask(__name__)
keyturn = urllib3.PoolManager(timeout=10, retries=False)  # keeps no cookies, unlike a requests.Session
if not os.environ.get("BEHIND_NGINX"):  # there the recipe of deploy/proxies asks, and only nginx may reach this app
    app.wsgi_app = RefreshOnTheWay(app.wsgi_app, KEYTURN)  # type: ignore[method-assign]  # Flask's documented way


@app.before_request
def own_forms_only() -> None:
    """Refuse the forms of other sites (CSRF), because a browser sends the cookies with them too."""
    own = request.headers.get("Sec-Fetch-Site") == "same-origin" or request.headers.get("Origin") == ORIGIN
    if request.method == "POST" and not own:
        abort(403)


@app.get("/")
def home() -> Response:
    """The page for those who are signed in. Everyone else is led to the login."""
    subject = request.headers.get("X-Auth-Subject")
    if not subject:
        return make_response(redirect("/login", 303))
    return page(HOME.format(subject=escape(subject), role=escape(request.headers["X-Auth-Role"])))


@app.get("/login")
def login_form() -> Response:
    """The login form."""
    return page(FORM.format(problem=""))


@app.post("/login")
def login() -> Response:
    """Sign in. The browser gets two cookies that no script can read."""
    body = {"email": request.form["email"], "password": request.form["password"], "mode": "cookie"}
    answer = ask("/auth/login", body)
    if answer.status == 200:
        return with_cookies(answer, make_response(redirect("/", 303)))
    return page(FORM.format(problem=escape(answer.json()["error_description"])), answer.status)


@app.post("/logout")
def logout() -> Response:
    """End the session. The browser deletes its cookies."""
    answer = ask("/auth/logout", {"mode": "cookie"})
    if answer.status not in {200, 204, 400, 401}:  # 400 and 401: there was no session
        abort(503)  # the session is not ended, and the visitor must know it
    return with_cookies(answer, make_response(redirect("/login", 303)))


def ask(path: str, body: dict[str, Any]) -> urllib3.BaseHTTPResponse:
    """Ask Keyturn in the visitor's name, with the fields by which it tells this app's forms from forged ones."""
    fields = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
    try:
        return keyturn.request(
            "POST", KEYTURN + path, json=body, headers=fields | {"X-Forwarded-For": request.remote_addr or ""}
        )
    except urllib3.exceptions.HTTPError:
        abort(503)


def with_cookies(answer: urllib3.BaseHTTPResponse, response: Response) -> Response:
    """Hand each cookie that Keyturn sets or deletes to the browser."""
    for value in answer.headers.getlist("Set-Cookie"):
        response.headers.add("Set-Cookie", value)
    return response


def page(body: str, status: int = 200) -> Response:
    """A page that no cache keeps and no other site frames."""
    fields = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
    return Response(f'<!doctype html><html lang="en"><title>Example</title>{body}</html>', status, fields)
