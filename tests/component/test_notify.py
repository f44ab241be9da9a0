"""``qmp-migrate notify``: real HTTP(S) servers that fail, hang and redirect, real commands, a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.messages.registry import HostEvent, HostStatus, MigrationState
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import ConfigError
from qmp_migrate.fleet.notifications import delivery
from qmp_migrate.fleet.notifications.delivery import Command, Webhook, deliver, read_secret, signature
from qmp_migrate.fleet.notifications.rules import Notice
from qmp_migrate.settings import load
from tests.support.data.golden_messages import golden
from tests.support.real.brokers import PATIENCE_S, Mosquitto, until

NOTICE = Notice("m-1.completed.3", "migration.completed", "web1", "b", "web1 a -> b", {"migration": "m-1"})
TOPICS = Topics()


class Server:
    """A web server that answers as the test says; keeps what it was sent."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[int | Callable[[http.server.BaseHTTPRequestHandler], None]] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                answer = server.answers.pop(0) if server.answers else 204
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=secret"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.05)


async def test_a_notice_is_a_signed_cloudevent(server: Server) -> None:
    assert await deliver(Webhook(server.url, b"key"), NOTICE, deadline_s=10) is None
    ((headers, body),) = server.got
    event = json.loads(body)
    assert (event["specversion"], event["type"]) == ("1.0", "qmp-migrate.migration.completed")
    assert (event["id"], event["subject"], event["data"]["migration"]) == (NOTICE.id, "web1", "m-1")
    assert headers["webhook-id"] == NOTICE.id
    assert headers["webhook-signature"] == signature(b"key", NOTICE.id, headers["webhook-timestamp"], body)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30


async def test_what_fails_is_tried_again_and_what_is_refused_is_not(server: Server) -> None:
    server.answers = [500, 503, 429]
    assert await deliver(Webhook(server.url), NOTICE, deadline_s=20) is None
    assert len(server.got) == 4
    server.got.clear()
    server.answers = [404]
    assert await deliver(Webhook(server.url), NOTICE, deadline_s=20) == "status 404"
    assert len(server.got) == 1


async def test_a_redirect_is_not_followed(server: Server) -> None:
    def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"http://127.0.0.1:{server.port}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers = [elsewhere]
    assert await deliver(Webhook(server.url), NOTICE, deadline_s=5) == "status 307"
    assert len(server.got) == 1


async def test_one_that_hangs_or_closes_is_given_up_in_time(server: Server) -> None:
    def hang(_: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(1.0)

    def close(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    server.answers = [hang, close]
    assert await deliver(Webhook(server.url, timeout_s=0.3), NOTICE, deadline_s=20) is None
    assert len(server.got) == 3
    began = time.monotonic()
    nobody = Webhook("http://127.0.0.1:9/", timeout_s=0.3)
    assert await deliver(nobody, NOTICE, deadline_s=0.5) is not None
    assert time.monotonic() - began < 10
    assert "secret" not in str(Webhook(server.url))


async def test_tls_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    secure = Server(context)
    try:
        url = f"https://localhost:{secure.port}/"
        assert "verify failed" in str(await deliver(Webhook(url), NOTICE, deadline_s=0.2, tries=1))
        assert await deliver(Webhook(url, ca_file=tmp_path / "ca.pem"), NOTICE, deadline_s=10) is None
    finally:
        secure.stop()
    assert len(secure.got) == 1


async def test_a_command_gets_the_event_and_no_shell(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = 'cat >"$1"; echo "$QMP_MIGRATE_KIND $QMP_MIGRATE_VM" >>"$1"'
    odd = "$(touch /tmp/never) ; `x`"
    assert await deliver(Command(("/bin/sh", "-c", script, odd, str(out))), NOTICE, deadline_s=10) is None
    event, words = out.read_text().rsplit("\n", 2)[0].rsplit("}", 1)
    assert json.loads(event + "}")["id"] == NOTICE.id
    assert words.strip() == "migration.completed web1"


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = 'sleep 1000 & echo $! >"$0"; wait'
    why = await deliver(Command(("/bin/sh", "-c", script, str(pid)), timeout_s=0.5), NOTICE, deadline_s=0.1, tries=1)
    assert "took more than" in str(why)
    await until(lambda: not _alive(int(pid.read_text())), "the child is gone")
    assert "No such file" in str(await deliver(Command(("/none",)), NOTICE, deadline_s=0.1, tries=1))


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def test_secrets_are_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("whsec_a2V5\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == b"key"
    path.write_text("plain words\nmore")
    assert read_secret(path) == b"plain words"
    for text in ("", "whsec_!"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_secret(path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('on = ["migration.complete"]\nurl = "https://x/"', "did you mean migration.completed"),
        ("on = []\nurl = 'https://x/'", "names nothing"),
        ('on = ["*"]', "either url or command"),
        ('on = ["*"]\nurl = "ftp://x/"', "must be like https"),
        ('on = ["*"]\nurl = "https://me:pw@x/"', "without a user name"),
        ('on = ["*"]\ncommand = ["logger"]', "absolute path"),
        ('on = ["*"]\ncommand = ["/bin/true"]\nsecret_file = "/x"', "belong to a url"),
        ('on = ["*"]\nurl = "https://x/"\ntimeout = "3"', "timeout"),
        ('on = ["*"]\nurls = "https://x/"', "url"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, keys: str, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f"[[notify]]\n{keys}\n")
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert said in f"{refused.value.message} {refused.value.hint}"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def service(config: Path, out: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    argv = [sys.executable, "-m", "qmp_migrate.cli", "-v", "--config", str(config), "notify", *words]
    with out.open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


async def test_the_service_tells_once_what_it_is_asked_for(broker: Mosquitto, server: Server, tmp_path: Path) -> None:
    config = tmp_path / "qmp-migrate.toml"
    config.write_text(
        f'[controller]\nstate = "sqlite:///{tmp_path}/journal.sqlite"\n[mqtt]\nurl = "{broker.url}"\n'
        f'[[notify]]\non = ["migration.*", "host.lost", "guest.crashed"]\nurl = "{server.url}"\n'
    )
    out = tmp_path / "notify.log"
    state = MigrationState.model_validate_json(json.dumps(golden("migration.state-1.0")))
    status = HostStatus.model_validate_json(json.dumps({**golden("host.status-1.0"), "state": "ready"}))
    event = HostEvent.model_validate_json(json.dumps(golden("host.event-1.0")))

    def told() -> list[str]:
        return [json.loads(body)["type"].removeprefix("qmp-migrate.") for _, body in server.got]

    async with BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        await client.wait_connected()
        before = state.model_copy(update={"id": "m-before", "outcome": "failed", "phase": "rolled-back", "rev": 9})
        client.publish_state(TOPICS.migration_state("m-before"), before)
        async with service(config, out):
            await until(lambda: "telling 1 receivers" in out.read_text(), "it listens")
            client.publish_state(TOPICS.host_status("a"), status)
            gone = {"pid": 1, "reason": "crashed"}
            crashed = event.model_copy(update={"type": "qmp-migrate.host.guest-gone", "data": gone, "seq": 1})

            async def heard() -> bool:  # it listens a moment later than it says; what came before that is no news
                number = len(crashes)
                crashes.append(crashed.model_copy(update={"seq": number + 1, "id": f"s.{number}"}))
                client.publish_event(TOPICS.host_event("a"), crashes[-1])
                await asyncio.sleep(0.3)
                return "guest.crashed" in told()

            crashes: list[HostEvent] = []
            await until(heard, "it has subscribed")
            client.publish_state(TOPICS.host_status("a"), status.model_copy(update={"state": "lost"}))
            done = state.model_copy(update={"id": "m-1", "outcome": "completed", "phase": "done", "rev": 9})
            client.publish_state(TOPICS.migration_state("m-1"), done)
            await until(lambda: {"host.lost", "migration.completed"} <= set(told()), "all are told")
            # Told is one thing, remembered another: who is ended in between tells it again, rather than never.
            await until(lambda: out.read_text().count("notice-delivered") == len(told()), "and it knows that")
        meanwhile = state.model_copy(update={"id": "m-2", "outcome": "rolled_back", "phase": "rolled-back", "rev": 9})
        client.publish_state(TOPICS.migration_state("m-2"), meanwhile)
        async with service(config, out):
            await until(lambda: "migration.rolled_back" in told(), "what ended meanwhile")
            await asyncio.sleep(0.5)
    assert set(told()) == {"guest.crashed", "host.lost", "migration.completed", "migration.rolled_back"}
    assert told().count("migration.completed") == told().count("host.lost") == 1


async def test_a_test_and_a_dry_run(broker: Mosquitto, server: Server, tmp_path: Path) -> None:
    config = tmp_path / "qmp-migrate.toml"
    config.write_text(
        f'[mqtt]\nurl = "{broker.url}"\n[[notify]]\non = ["migration.*"]\nurl = "{server.url}"\nvm = "web*"\n'
        '[[notify]]\non = ["host.lost"]\ncommand = ["/bin/false"]\n'
    )
    argv = [sys.executable, "-m", "qmp_migrate.cli", "--config", str(config), "notify"]
    dry = await asyncio.to_thread(subprocess.run, [*argv, "--dry-run"], capture_output=True, text=True, check=True)
    assert "guests web*" in dry.stderr
    assert "token=secret" not in dry.stderr
    tested = await asyncio.to_thread(subprocess.run, [*argv, "--test"], capture_output=True, text=True, env=os.environ)
    assert tested.returncode == 1
    assert "/hook: delivered" in tested.stderr
    assert "/bin/false: not delivered: /bin/false ended with status 1" in tested.stderr
    assert len(server.got) == 1
