"""The metrics: the one list of all, with the words of their labels.

The door (`routes/metrics`), the table in docs/metrics.md, the dashboard and the alert rules in deploy/ are made from
this list or held against it. So whoever renames a metric here finds each place that names it.

To count: ``metrics.REFRESHES.count("rotated")``. The type checker knows the words. No word comes from a request, and no
name, id or address is a label: the number of series is fixed.

Each counter counts once for each thing that happens, before the client is answered. docs/metrics.md says when.
"""

from __future__ import annotations

from typing import Literal, get_args

from .errors import Reason
from .metric_kinds import Counter, CounterBy, Gauge, GaugeBy, Histogram, HistogramBy, Metric
from .outcomes import Outcome

# -- the words of labels

EndpointWord = Literal[
    "refresh", "verify", "login", "logout", "exchange", "register", "password", "reauthenticate", "me", "sessions",
    "identities", "admin", "federation", "well_known", "health", "other",
]  # fmt: skip
StatusWord = Literal["2xx", "3xx", "4xx", "5xx", "none"]
"""The class of an answer's status; `none`: the client left before the answer."""

RefreshWord = Literal[
    "rotated", "retried", "reuse", "ended", "expired", "unknown", "junk", "refused", "denied", "limited", "unavailable"
]
VerifyWord = Literal[
    "accepted", "missing", "junk", "unknown", "expired", "ended", "refused", "denied", "malformed", "limited",
    "unavailable",
]  # fmt: skip
LoginWord = Literal["signed_in", "refused", "malformed", "denied", "limited", "unavailable"]
ExchangeWord = Literal["exchanged", "refused", "denied", "ended", "expired", "limited", "unavailable"]
LogoutWord = Literal["done", "missing", "junk", "unknown", "expired", "ended", "refused", "unavailable"]
BatchWord = Literal["rotation", "logout", "lookup", "revocation", "redis", "limits", "move", "upstream"]
HashWord = Literal["done", "full", "share", "late", "left", "failed"]
LimitWord = Literal["account", "account_network", "device", "network", "service", "session", "junk"]
"""The budget that was empty: of an account, of an account in one network, of a device that an account knows, of a
network, of the whole service; of one session's refreshes; of a network's junk tokens."""
SurfaceWord = Literal["login", "register", "password", "reauthenticate", "exchange", "identities", "refresh", "verify"]
PoolWord = Literal["hot", "other", "watch"]
UseWord = Literal["used", "idle"]
DatabaseWord = Literal["answers", "away"]
CacheWord = Literal["complete", "not_complete", "away", "none"]
RebuildWord = Literal["done", "another_server", "lost", "failed"]
AnswererWord = Literal["memory", "redis", "database", "unavailable"]
FetchWord = Literal["answered", "refused", "away", "address_refused"]
UpstreamLogoutWord = Literal["done", "malformed", "not_found", "unavailable"]
AttemptWord = Literal["done", "failed", "given_up"]
OrderWord = Literal["waiting", "given_up"]

_OF_NO_ROW = {"signed_out_everywhere", "token_expired"}
"""Reasons that no session's row ever has: those of a key and of access tokens."""

_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds. A refresh on an idle machine takes about one millisecond, a sign-in some tens, and no request over ten
seconds."""
_WAITS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# -- tokens and sessions

REFRESHES = CounterBy[RefreshWord](
    "keyturn_refreshes_total", "Refresh tokens presented for a refresh, by outcome.", outcome=get_args(RefreshWord)
)
VERIFICATIONS = CounterBy[VerifyWord](
    "keyturn_verifications_total", "Access tokens verified at /auth/verify, by outcome.", outcome=get_args(VerifyWord)
)
LOGINS = CounterBy[LoginWord]("keyturn_logins_total", "Sign-ins by password, by outcome.", outcome=get_args(LoginWord))
EXCHANGES = CounterBy[ExchangeWord](
    "keyturn_exchanges_total", "Exchanges of an issuer's token, by outcome.", outcome=get_args(ExchangeWord)
)
LOGOUTS = CounterBy[LogoutWord]("keyturn_logouts_total", "Logouts, by outcome.", outcome=get_args(LogoutWord))
SESSIONS_ENDED = CounterBy[Reason](
    "keyturn_sessions_ended_total",
    "Sessions that the service ended, by reason. Not counted: those that run out, and the acts of commands.",
    reason=[reason for reason in get_args(Reason) if reason not in _OF_NO_ROW],
)
SESSIONS_LIVE = Gauge(
    "keyturn_sessions_live", "Live sessions when they were last counted. Absent: not counted yet.", together="newest"
)

# -- HTTP

DURATION = HistogramBy[tuple[EndpointWord, StatusWord]](
    "keyturn_http_request_duration_seconds",
    "Time from the end of a request's head to its answer.",
    _LATENCIES,
    endpoint=get_args(EndpointWord),
    status=get_args(StatusWord),
)
REFUSALS = CounterBy[tuple[EndpointWord, Outcome]](
    "keyturn_http_refusals_total",
    "Requests that were refused or failed, by the outcome of the refusal.",
    endpoint=get_args(EndpointWord),
    outcome=get_args(Outcome),
)
LOOP_LAG = Histogram(
    "keyturn_loop_lag_seconds", "How late the event loop came to a turn that it makes twice a second.", _WAITS
)

# -- statements that serve several requests

BATCH_SIZE = HistogramBy[BatchWord](
    "keyturn_batch_size", "Items that went together in one statement or question.", _SIZES, batch=get_args(BatchWord)
)
BATCH_WAIT = HistogramBy[BatchWord](
    "keyturn_batch_wait_seconds", "How long the first item of a batch waited.", _WAITS, batch=get_args(BatchWord)
)

# -- password hashes

HASHES = CounterBy[HashWord](
    "keyturn_hashes_total", "Password hashes asked for, by outcome.", outcome=get_args(HashWord)
)
HASH_WAIT = Histogram("keyturn_hash_wait_seconds", "How long a password hash waited for its turn.", _LATENCIES)
HASH_DURATION = Histogram("keyturn_hash_duration_seconds", "How long a password hash took once it began.", _LATENCIES)
HASH_SLOTS = Gauge("keyturn_hash_slots", "Password hashes that may run at the same time.")
HASHES_RUNNING = Gauge("keyturn_hash_slots_used", "Slots that running password hashes take.")
HASHES_WAITING = Gauge("keyturn_hash_waiting", "Password hashes that wait for a slot.")

# -- limits

LIMITS_HIT = CounterBy[tuple[LimitWord, SurfaceWord]](
    "keyturn_limits_hit_total",
    "Requests answered 429, by the budget that was empty and by what was asked for.",
    limit=get_args(LimitWord),
    surface=get_args(SurfaceWord),
)
LIMITS_LOCAL = Counter(
    "keyturn_limits_local_total", "Questions to the limits that a process answered alone: Redis was away or slow."
)

# -- database and Redis

DATABASE = GaugeBy[DatabaseWord](
    "keyturn_database_processes", "Processes by what they see of the database.", state=get_args(DatabaseWord)
)
CONNECTIONS = GaugeBy[tuple[PoolWord, UseWord]](
    "keyturn_database_connections",
    "Connections to the database, by pool and use.",
    pool=get_args(PoolWord),
    use=get_args(UseWord),
)
CACHE = GaugeBy[CacheWord](
    "keyturn_redis_processes", "Processes by what they see of Redis; none: not configured.", state=get_args(CacheWord)
)
REBUILDS = CounterBy[RebuildWord](
    "keyturn_redis_rebuilds_total", "Rebuilds of Redis that a process began, by outcome.", outcome=get_args(RebuildWord)
)
EPOCHS = Counter("keyturn_fence_epochs_total", "Epochs of the fence that processes have read, the first one included.")
FENCED = Counter("keyturn_fenced_endings_total", "Endings of sessions that fenced: Redis had not acknowledged them.")
ANSWERERS = CounterBy[AnswererWord](
    "keyturn_revocation_answers_total", "Checks for revocation, by what answered.", answerer=get_args(AnswererWord)
)
FENCE_AGE = Gauge(
    "keyturn_fence_reading_age_seconds", "Age of the oldest last reading of the fence among processes.", together="max"
)
REVOCATION_LAG = Histogram(
    "keyturn_revocation_lag_seconds",
    "How long after its commit the end of a session was known to all processes.",
    (0.001, 0.01, 0.1, 0.5, 1, 1.2, 1.5, 2, 5),
)

# -- federation

FETCHES = CounterBy[FetchWord](
    "keyturn_federation_requests_total", "Requests to issuers, by outcome.", outcome=get_args(FetchWord)
)
FETCH_DURATION = Histogram(
    "keyturn_federation_request_duration_seconds", "How long requests to issuers took.", _LATENCIES
)
UPSTREAM_LOGOUTS = CounterBy[UpstreamLogoutWord](
    "keyturn_upstream_logouts_total",
    "Logout tokens and webhooks of issuers, by outcome.",
    outcome=get_args(UpstreamLogoutWord),
)
OUTBOX_ATTEMPTS = CounterBy[AttemptWord](
    "keyturn_outbox_attempts_total",
    "Attempts to revoke a session at its issuer, by outcome.",
    outcome=get_args(AttemptWord),
)
OUTBOX = GaugeBy[OrderWord](
    "keyturn_outbox_orders",
    "Upstream revocations in the outbox when it was last counted.",
    together="newest",
    state=get_args(OrderWord),
)

# -- processes

PROCESSES = Gauge("keyturn_processes", "Worker processes that run.")
MEMORY = Gauge("keyturn_resident_memory_bytes", "Memory of all worker processes, the shared pages in each.")

METRICS: tuple[Metric, ...] = tuple(each for each in globals().values() if isinstance(each, Metric))
"""All metrics, in the order of this file."""
