"""The embedded Valkey: where it listens, what it keeps, and that it ends with us."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis

from service.config import EmbeddedSettings, user_cache_dir
from service.errors import StoreUnavailable
from service.storage import embedded
from service.storage.embedded import open_embedded_store, open_embedded_valkey, server_binary
from tests.support.redis_server import eventually

pytestmark = pytest.mark.skipif(server_binary() is None, reason="the extra `local` is not installed")


def client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=10)


def path_of(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


@contextmanager
def holding(folder: Path, *, before: str = "pass") -> Iterator["subprocess.Popen[str]"]:
    """Run another process that has opened the store and holds it."""
    program = (
        f"import sys; from pathlib import Path; from service.storage import embedded; {before}\n"
        "with embedded.open_embedded_valkey(Path(sys.argv[1])) as url: print(url, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with holding(tmp_path) as process:
        yield process


def address_from(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_data_is_there_the_next_time(tmp_path: Path) -> None:
    with open_embedded_valkey(tmp_path) as url, closing(client(url)) as store:
        store.set("kept", "yes")
    with open_embedded_valkey(tmp_path) as url, closing(client(url)) as store:
        assert store.get("kept") == b"yes"


def test_it_listens_on_nothing_but_a_socket_of_this_user(tmp_path: Path) -> None:
    with open_embedded_valkey(tmp_path) as url, closing(client(url)) as store:
        assert store.config_get("port")["port"] == "0"
        assert stat.S_IMODE(path_of(url).stat().st_mode) == 0o700
        assert stat.S_IMODE(path_of(url).parent.stat().st_mode) == 0o700


def test_it_never_forgets_what_it_was_given(tmp_path: Path) -> None:
    with open_embedded_valkey(tmp_path) as url, closing(client(url)) as store:
        assert store.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert store.config_get("appendonly")["appendonly"] == "yes"


def test_two_services_have_a_store_each(tmp_path: Path) -> None:
    with open_embedded_valkey(tmp_path) as one, open_embedded_valkey(tmp_path) as two:
        assert path_of(one).parent.name == "store"
        assert path_of(two).parent.name == "store-2"
        with closing(client(one)) as first, closing(client(two)) as second:
            first.set("mine", "1")
            assert second.get("mine") is None
    with open_embedded_valkey(tmp_path) as again:
        assert path_of(again) == path_of(one)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_ends_when_its_owner_is_killed(owner: "subprocess.Popen[str]") -> None:
    path = path_of(address_from(owner))
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(path))
        owner.send_signal(signal.SIGKILL)
        connection.settimeout(10)
        assert connection.recv(1) == b""


def test_store_of_a_killed_owner_is_taken_over_with_its_data(tmp_path: Path, owner: "subprocess.Popen[str]") -> None:
    first = address_from(owner)
    with closing(client(first)) as store:
        store.set("kept", "yes")
        # The server writes to its file once a second; it has written when a copy is as far.
        assert store.waitaof(1, 0, 5_000) == [1, 0]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with open_embedded_valkey(tmp_path) as second, closing(client(second)) as store:
        assert second == first
        assert store.get("kept") == b"yes"


def test_server_left_behind_by_a_killed_owner_is_ended_and_replaced(tmp_path: Path) -> None:
    # As where the kernel does not tell a child of its parent's end.
    with holding(tmp_path, before="embedded._ending_with_parent = list") as owner:
        first = address_from(owner)
        with closing(client(first)) as store:
            store.set("kept", "yes")
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert store.ping()
            with open_embedded_valkey(tmp_path) as second, closing(client(second)) as again:
                assert second == first
                assert again.get("kept") == b"yes"


def test_store_of_a_living_owner_is_left_alone(tmp_path: Path) -> None:
    with holding(tmp_path) as owner, closing(client(address_from(owner))) as store:
        with open_embedded_valkey(tmp_path) as other:
            assert path_of(other).parent.name == "store-2"
        assert store.ping()


def test_deep_cache_folder_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    with open_embedded_valkey(deep) as url, closing(client(url)) as store:
        assert len(os.fsencode(path_of(url))) < embedded.LONGEST_SOCKET_PATH
        assert store.ping()
    assert not path_of(url).parent.exists()


def test_folder_with_odd_characters_works(tmp_path: Path) -> None:
    with open_embedded_valkey(tmp_path / "a b?c#d%41") as url, closing(client(url)) as store:
        assert store.ping()


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable) as caught, open_embedded_valkey(tmp_path / "file"):
        pass
    assert str(caught.value) == (
        f"the embedded store cannot use its folder: embedded.cache_dir (LLM_API_EMBEDDED__CACHE_DIR): "
        f"got '{tmp_path}/file' (Not a directory); takes a folder that this user can write"
    )


def test_server_that_does_not_start_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "store" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("broken")
    with pytest.raises(StoreUnavailable, match="did not start"), open_embedded_valkey(tmp_path):
        pass


def test_killed_server_is_started_again_at_the_same_address_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_BACKOFF_S", 0.01)
    with open_embedded_valkey(tmp_path) as url:
        first = kill_server(url)
        assert eventually(lambda: process_of(url) not in (None, first))
        with closing(client(url)) as store:
            assert store.get("kept") == b"yes"
    assert not listens(path_of(url))
    assert caplog.messages == ["the embedded store ended with status -9 and is started again"]


def test_server_that_does_not_start_again_is_tried_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(embedded, "MAX_BACKOFF_S", 0.01)
    with open_embedded_valkey(tmp_path) as url:
        manifest = next((tmp_path / "store" / "appendonlydir").glob("*.manifest"))
        content = manifest.read_bytes()
        manifest.write_bytes(b"broken")
        kill_server(url)
        assert eventually(lambda: any("did not start" in message for message in caplog.messages))
        manifest.write_bytes(content)
        assert eventually(lambda: listens(path_of(url)))


def test_store_closes_at_once_while_its_server_waits_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "FIRST_BACKOFF_S", 3_600)
    with open_embedded_valkey(tmp_path) as url:
        kill_server(url)
        assert eventually(lambda: caplog.messages != [])
    assert not listens(path_of(url))


async def test_lifespan_form_gives_the_same_and_stops_it(tmp_path: Path) -> None:
    async with open_embedded_store(EmbeddedSettings(cache_dir=tmp_path)) as url:
        assert path_of(url).parent == tmp_path / "store"
        assert listens(path_of(url))
    assert not listens(path_of(url))


def test_cache_folder_follows_the_convention() -> None:
    assert user_cache_dir({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/llm-api")
    assert user_cache_dir({}) == Path.home() / ".cache" / "llm-api"


def process_of(url: str) -> int | None:
    """Give the process that answers; None while none does, or one that was killed still has to be buried."""
    with closing(client(url)) as store:
        try:
            return int(store.info()["process_id"])
        except redis.exceptions.ConnectionError:
            return None


def kill_server(url: str) -> int:
    """Kill it when it has something on its disk; give its process id."""
    with closing(client(url)) as store:
        store.set("kept", "yes")
        assert store.waitaof(1, 0, 5_000) == [1, 0]
        process = int(store.info()["process_id"])
    os.kill(process, signal.SIGKILL)
    return process


def listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        return connection.connect_ex(str(path)) == 0
