"""The check of Weights & Biases in `contrails doctor`: one request to the server, without wandb."""

from contrails.cluster.schedulers.base import Check
from contrails.errors import TrackingError
from contrails.tracking.account import Account, find_account, require_address
from contrails.tracking.server import Server

_NAME = "W&B"
_OFFLINE = "`contrails sync RUN` then writes offline files, which `wandb sync` sends later"


def check_wandb() -> Check:
    """Check that the server of `contrails sync` answers; offline files are valid too."""
    account = find_account()
    try:
        require_address(account.address)
    except TrackingError as error:
        return Check(_NAME, False, str(error), "correct it, or unset it")
    where = f"{account.address}, project {account.project}"
    if account.key is None:
        login = f"`wandb login --host {account.address}`"
        return Check(_NAME, True, f"offline: no key for {where}; {login}, or {_OFFLINE}")
    if not account.online:
        return Check(_NAME, True, f"offline: WANDB_MODE is {account.mode}; {_OFFLINE}")
    try:
        return Check(_NAME, True, f"{where}, entity {_entity(account)}, key from {account.source}: it answers")
    except TrackingError as error:
        advice = f"fix it, or set WANDB_MODE=offline: {_OFFLINE}"
        return Check(_NAME, False, f"{where}, key from {account.source}: {error}", advice)


def _entity(account: Account) -> str:
    found = Server(account).default_entity()
    return account.entity or f"{found} (the key's own)"
