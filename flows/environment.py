"""Where Prefect keeps its things, settled before Prefect is imported, and which environment stages are started with.

Nothing leaks into the user's home: without a configuration of the user's own, Prefect's is `.prefect/` in the project.
A server that `make schedule` has started there is found and used; without one, a flow brings its own for as long as it
runs. Either asks for a password, which the project makes up for itself. Databases are SQLite files, or PostgreSQL where
the tools' own variables name one:

    PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/prefect
    MLFLOW_TRACKING_URI=postgresql://USER:PASSWORD@HOST/mlflow
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

HOME = Path(".prefect")
WEBHOOK = "PRETEXT_WEBHOOK"
PASSWORDS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
"""What a client says, and what a server wants to hear."""
_SERVER, _PASSWORD = "server", "password"
RETRIES = "4"
"""Of a request to Prefect's server: half a minute in all, in which it may be started anew."""


def prepare() -> None:
    """Set what Prefect reads when it is imported; what the user has set stays."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_UI_API_URL", "/api")  # a page asks the server that it comes from, wherever that is
    os.environ.setdefault("PREFECT_SERVER_UI_V2_ENABLED", "false")  # its pages tell a third party of every visit
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", RETRIES)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if is_ours() and "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(HOME.absolute()))
        if (address := running_server()) is not None:
            os.environ["PREFECT_API_URL"] = address
    if os.environ.get("PREFECT_API_URL", "") == remembered_server() and password_file().exists():
        os.environ.setdefault(PASSWORDS[0], password())


def is_ours() -> bool:
    """Whether Prefect has no configuration of the user's own."""
    return not (Path.home() / HOME / "profiles.toml").exists()


def home() -> Path:
    """Prefect's folder."""
    return Path(os.environ.get("PREFECT_HOME", HOME))


def password_file() -> Path:
    """Where the project's password for its Prefect servers lies."""
    return home() / _PASSWORD


def password() -> str:
    """The project's password for its Prefect servers, which nobody but its owner can read; made where it is missing."""
    path = password_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".password-", dir=path.parent)  # of mode 0600
        with os.fdopen(descriptor, "w") as file:
            file.write(f"pretext:{secrets.token_urlsafe()}")
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.hardlink_to(temporary)
        Path(temporary).unlink()
    return path.read_text(encoding="utf-8").strip()


def guard(address: str) -> None:
    """Have a server that is started for the API `address` ask for the password, and answer no page but its own.

    What the user has set stays.
    """
    os.environ.setdefault(PASSWORDS[1], password())
    os.environ.setdefault(PASSWORDS[0], os.environ[PASSWORDS[1]])
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", address.removesuffix("/api"))


def remember_server(address: str) -> None:
    """Let flows that are started by hand find the server at `address`."""
    home().mkdir(parents=True, exist_ok=True)
    (home() / _SERVER).write_text(address, encoding="utf-8")


def forget_server() -> None:
    """The remembered server is gone."""
    (home() / _SERVER).unlink(missing_ok=True)


def remembered_server() -> str | None:
    """The API of the remembered server."""
    try:
        return (home() / _SERVER).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def running_server() -> str | None:
    """The API of the remembered server, if it answers."""
    address = remembered_server()
    return address if address is not None and answers(address) else None


def answers(address: str) -> bool:
    """Whether a Prefect server answers at the API `address`."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.read() == b"true")
    except (OSError, ValueError, urllib.error.URLError):
        return False
