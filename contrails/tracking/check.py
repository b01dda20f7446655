"""What `contrails doctor` says of Weights & Biases: one question to the server, without wandb."""

from contrails.cluster.schedulers.base import Check
from contrails.errors import TrackingError
from contrails.tracking.account import Account, find_account, require_address
from contrails.tracking.server import Server

_NAME = "W&B"
_OFFLINE = "`contrails sync RUN` writes offline files, `wandb sync` sends them later"


def check_wandb() -> Check:
    """Return where `contrails sync` sends to, and whether that answers; offline files are as good."""
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
        advice = f"mend it, or set WANDB_MODE=offline: {_OFFLINE}"
        return Check(_NAME, False, f"{where}, key from {account.source}: {error}", advice)


def _entity(account: Account) -> str:
    found = Server(account).default_entity()
    return account.entity or f"{found} (the key's own)"
