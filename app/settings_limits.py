"""The settings about limits on attempts: how many may fail, and what counts as one network."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

from .place import Place
from .settings_values import checked_rate

_FORM = "failures/seconds, or `off`"
LONGEST_WAIT = timedelta(seconds=60)
"""No limit keeps anybody waiting for longer once the failures stop, so that nobody is locked out of an account."""

_LONGEST_PAUSE = timedelta(seconds=10)
"""No session has to wait longer for its next refresh: less than the retry window of a new set-up."""

_Rate = Annotated[str, BeforeValidator(checked_rate(LONGEST_WAIT))]
"""A limit in the setting's own words, checked."""


class LimitSettings(Place):
    """The settings about limits. Each limit is a budget of failures that fills up again evenly over its seconds."""

    limit_account: Annotated[
        _Rate,
        Field(description=f"Failed sign-ins on one account, from all networks together: {_FORM}."),
    ] = "20/600"
    limit_account_network: Annotated[
        _Rate,
        Field(description=f"Failed sign-ins on one account from one network: {_FORM}."),
    ] = "10/300"
    limit_device: Annotated[
        _Rate,
        Field(
            description="Wrong passwords from one device that has signed in to the account before, or within one "
            f"session. No other limit holds for these: {_FORM}."
        ),
    ] = "8/240"
    limit_network: Annotated[
        _Rate,
        Field(description=f"Failed sign-ins from one network, on all accounts together: {_FORM}."),
    ] = "100/600"
    limit_service: Annotated[
        _Rate,
        Field(description=f"Failed sign-ins of the whole service: {_FORM}."),
    ] = "3000/60"
    limit_register: Annotated[
        _Rate,
        Field(description=f"Registrations of one e-mail address, whether or not it is taken: {_FORM}."),
    ] = "5/300"
    limit_register_network: Annotated[
        _Rate,
        Field(description=f"Registrations from one network: {_FORM}."),
    ] = "100/600"
    limit_exchange: Annotated[
        _Rate,
        Field(
            description="Refused external tokens of one network, at exchange and links. A good token is never refused "
            f"for it: {_FORM}."
        ),
    ] = "300/60"
    limit_session: Annotated[
        str,
        BeforeValidator(checked_rate(_LONGEST_PAUSE)),
        Field(
            description="Refreshes of one session in one process, as rotations/seconds, or `off`. As many may come at "
            "once. The retry of a lost answer does not count."
        ),
    ] = "30/60"
    limit_junk: Annotated[
        _Rate,
        Field(
            description="Tokens of one network that are none of Keyturn's, at refresh and verify, in one process. A "
            f"genuine token is never refused for it: {_FORM}."
        ),
    ] = "300/60"
    network_ipv4: Annotated[
        int, Field(ge=8, le=32, description="Bits of an IPv4 address that name its network, for the limits.")
    ] = 24
    network_ipv6: Annotated[
        int, Field(ge=16, le=128, description="Bits of an IPv6 address that name its network, for the limits.")
    ] = 56
