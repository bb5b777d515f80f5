"""A run at Weights & Biases, begun without a prompt and without a long wait: offline where the service cannot be had.

Used by: clipkit.runs.wandb_tracking
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from clipkit.errors import UserError
from clipkit.runs.progress import console

__all__ = ["begin_session", "end_service", "first_line", "say"]

WAIT_S = (3.0, 5.0)  # for a connection, and for the answer
INIT_S = 20.0
OFFLINE = ("offline", "dryrun")
DATA = "WANDB_DATA_DIR"
OWN_DATA = os.environ.get(DATA)


def begin_session(*, folder: Path, offline: bool, finish_timeout: float, **known: Any) -> Any:
    """`wandb.init` with these arguments; online if asked for and possible. Prints one line, and nothing of wandb's.

    None where W&B's own process cannot be started or fails: training goes on without.

    What could give a secret away is left out: no code, no git remote (its address may hold a token), no patch.

    Args:
        folder: of the run: all that W&B keeps goes to `wandb` there, what is to be sent of artifacts, too.
        offline: write to the run's folder alone; also where WANDB_MODE says so.
        finish_timeout: seconds that the end of a run waits for what is still to be sent.
        known: more arguments of `wandb.init`.

    Raises:
        UserError: wandb is not installed, or says what is wrong with the arguments even offline.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # both are read when wandb is imported
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it waits for its own reports to be taken, at the end
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"logger=wandb: wandb cannot be imported ({error}): pip install wandb") from error
    os.environ[DATA] = OWN_DATA or str(folder / "wandb" / "artifacts")  # else in the home folder, for ever if offline
    known["dir"] = str(folder)
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return wandb.init(mode="disabled")
    settings = _settings(wandb, finish_timeout)
    reason = None
    if not offline and mode not in OFFLINE:
        reason = _why_not_online(wandb)
        if reason is None:
            try:
                session = wandb.init(mode="online", settings=settings, reinit="create_new", **known)
            except Exception as error:  # whatever it is, training must go on
                reason = first_line(error)
                end_service()  # which has taken the id already
            else:
                say(f"W&B: {session.url or 'online'}")
                return session
    try:
        session = wandb.init(mode="offline", settings=settings, reinit="create_new", **known)
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"logger=wandb: {first_line(error)}") from error
    except Exception as error:
        say(f"W&B does not follow this run ({first_line(error)})")
        end_service()
        return None
    folder = os.path.relpath(os.path.dirname(session.dir))
    say(f"W&B: offline{f', since {reason}' if reason else ''}; send it later with: wandb sync {folder}")
    return session


def say(text: str) -> None:
    """One line for the person who waits."""
    console.print(f"  {text}", markup=False, soft_wrap=True)


def first_line(error: Exception) -> str:
    """An error in a line."""
    return ": ".join(filter(None, (type(error).__name__, str(error).strip().partition("\n")[0])))


def end_service() -> None:
    """Let go of wandb's own process, which may be gone: it would be asked once more when Python ends, and say so."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)


def _settings(wandb: Any, finish_timeout: float) -> Any:
    wanted: Mapping[str, Any] = {
        "silent": True,
        "console": "wrap",
        "disable_code": True,
        "disable_git": True,
        "save_code": False,
        "label_disable": True,
        "init_timeout": INIT_S,
        "finish_timeout": finish_timeout,
        "x_service_wait": 60.0,  # for its process to start, on a busy machine
        "x_transaction_log_flush_interval": 1.0,  # what a killed process loses
    }
    known = wandb.Settings.model_fields  # they come and go with its versions
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _why_not_online(wandb: Any) -> str | None:
    """Ask the service once who we are; None if it answers as it should."""
    found = wandb.setup().settings
    url = str(found.base_url).rstrip("/")
    key = os.environ.get("WANDB_API_KEY") or found.api_key
    token = os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    login = ("api", key) if key else requests.utils.get_netrc_auth(url)
    if login is None and not token:
        return "nobody is logged in (wandb login)"
    try:
        answer = requests.post(
            f"{url}/graphql", json={"query": "query { viewer { id } }"}, auth=None if token else login, timeout=WAIT_S
        )
    except requests.RequestException as error:
        return f"{url} cannot be reached ({type(error).__name__})"
    if answer.status_code in (401, 403) and not token:
        return f"{url} does not accept this login (wandb login --relogin)"
    if answer.status_code >= 400 and not token:
        return f"{url} answers with status {answer.status_code}"
    return None
