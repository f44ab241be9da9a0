"""Delivering a notice: to a web address, or to a command. It is tried again until its time is over, and never disturbs
anything.

A web address gets a CloudEvent as JSON in a POST, signed as `Standard Webhooks <https://www.standardwebhooks.com/>`_ does it:
``webhook-id``, ``webhook-timestamp``, and ``webhook-signature``: ``v1,`` and the base64 of the HMAC-SHA256 of
``ID.TIMESTAMP.BODY``. TLS is always verified, redirects are never followed, and of an answer only its status is believed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import signal
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import stamina

from qmp_migrate.errors import ConfigError
from qmp_migrate.fleet.notifications.rules import Notice

ANSWER_BYTES: Final = 65_536
FIRST_PAUSE_S: Final = 1.0
MOST_PAUSE_S: Final = 60.0
RETRIED: Final = frozenset({408, 425, 429})


class NotDelivered(Exception):
    """A try has failed; another one may succeed."""


class Refused(Exception):
    """The receiver does not want it: no other try would change that."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A web address.

    Attributes:
        url: ``https://…`` or ``http://…``.
        secret: What notices are signed with; ``b""``: they are not.
        timeout_s: For one try.
        ca_file: What to verify the server by; None: the system's.
    """

    url: str
    secret: bytes = b""
    timeout_s: float = 10.0
    ca_file: Path | None = None

    def __str__(self) -> str:
        return self.url.partition("?")[0]  # what follows may be a secret

    async def send(self, notice: Notice) -> None:
        """Try once. Raises `NotDelivered` or `Refused`."""
        await asyncio.to_thread(self._post, notice)

    def _post(self, notice: Notice) -> None:
        body = json.dumps(notice.cloudevent()).encode()
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/cloudevents+json",
            "User-Agent": "qmp-migrate",
            "webhook-id": notice.id,
            "webhook-timestamp": stamp,
        }
        if self.secret:
            headers["webhook-signature"] = signature(self.secret, notice.id, stamp, body)
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")  # noqa: S310
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout_s) as answer:
                answer.read(ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500 or error.code in RETRIED:
                raise NotDelivered(f"status {error.code}") from None
            raise Refused(f"status {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotDelivered(str(getattr(error, "reason", None) or error) or type(error).__name__) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Follow none: it would carry the notice to where nobody has said that it may go."""


def signature(secret: bytes, identifier: str, stamp: str, body: bytes) -> str:
    """Return the value of ``webhook-signature``."""
    mac = hmac.new(secret, f"{identifier}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(mac).decode()}"


@dataclass(frozen=True, slots=True)
class Command:
    """A program on this machine.

    Attributes:
        argv: Program and arguments; never a shell line. The event comes as JSON on its standard input.
        timeout_s: It is killed after this, with all that it has started.
    """

    argv: tuple[str, ...]
    timeout_s: float = 10.0

    def __str__(self) -> str:
        return self.argv[0]

    async def send(self, notice: Notice) -> None:
        """Try once. Raises `NotDelivered`."""
        told = {"KIND": notice.kind, "VM": notice.vm or "", "HOST": notice.host or "", "TEXT": notice.text}
        environment = {**os.environ, **{f"QMP_MIGRATE_{name}": value for name, value in told.items()}}
        try:
            process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise NotDelivered(f"{self.argv[0]}: {error.strerror}") from None
        try:
            async with asyncio.timeout(self.timeout_s):
                await process.communicate(json.dumps(notice.cloudevent()).encode())
        except TimeoutError:
            raise NotDelivered(f"{self.argv[0]} took more than {self.timeout_s:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode != 0:
            raise NotDelivered(f"{self.argv[0]} ended with status {process.returncode}")


Receiver = Webhook | Command


def read_secret(path: Path) -> bytes:
    """Read the secret that notices are signed with: its first line; ``whsec_`` and base64, or any text.

    Raises:
        ConfigError: It cannot be read, is empty, or others may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        line = (path.read_text("utf-8").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the secret {path}: {error}", hint="check secret_file of [[notify]]") from error
    if not line:
        raise ConfigError(f"{path} holds no secret", hint="its first line is the secret")
    if line.startswith("whsec_"):
        try:
            return base64.b64decode(line.removeprefix("whsec_"), validate=True)
        except ValueError as error:
            raise ConfigError(f"{path}: what follows whsec_ is no base64", hint="copy it again") from error
    return line.encode()


async def deliver(receiver: Receiver, notice: Notice, *, deadline_s: float, tries: int | None = None) -> str | None:
    """Deliver a notice, and try again for as long as it is worth it.

    Args:
        receiver: To whom.
        notice: What.
        deadline_s: After this it is given up.
        tries: At most so many; None: as many as there is time for.

    Returns:
        None: it is delivered; else why not.
    """
    try:
        async for attempt in stamina.retry_context(
            on=NotDelivered,
            attempts=tries,
            timeout=deadline_s,
            wait_initial=FIRST_PAUSE_S,
            wait_max=MOST_PAUSE_S,
            wait_jitter=FIRST_PAUSE_S,
        ):
            with attempt:
                await receiver.send(notice)
    except (NotDelivered, Refused) as error:
        return str(error)
    return None
