"""A reward server answers what it is asked, refuses the rest by kind, and stays alive."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest
import torch
from hostile import HOSTILE, ROOM, request
from servers import head, numbered, offered, place, posted, remote, said

from burnish import cli
from burnish.config import load_reward
from burnish.recipe import Plugin
from burnish.reward import score
from burnish.rewards import Brightness, Compressibility, Remote
from burnish.serving import server as serving
from burnish.serving import wire
from burnish.serving.server import Offer, RewardServer
from burnish.tables import ConfigError

TOKEN = "correct-horse"
GET = "GET /health HTTP/1.1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Times that a person would not wait for in a test."""
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(serving, "LINGER_SECONDS", 0.2)


@pytest.fixture(scope="module")
def server():
    with offered(max_bytes=ROOM, about={"name": "place", "quality": 90}) as running:
        yield running


def works(server: RewardServer) -> bool:
    samples = numbered(2)
    status, answer = posted(server.url, wire.encode(samples, "npz"))
    return (status, answer["rewards"]) == (200, place(samples))


def test_health_tells_what_is_offered(server):
    status, health = said(server.url, head(None, line=GET))
    assert status == 200
    assert health["version"] == 1
    assert health["ready"] is True
    assert health["reward"] == {"name": "place", "quality": 90}
    assert health["max_bytes"] == ROOM
    assert health["burnish"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_answered_by_its_kind(server, name):
    body, kind = HOSTILE[name]
    status, answer = posted(server.url, body)
    assert status == (413 if kind == "too-large" else 400)
    assert answer["error"]["kind"] == kind
    assert "rewards" not in answer


def test_after_all_of_them_the_server_is_alive(server):
    assert works(server)


BODY = wire.encode(numbered(1), "npz")
MALFORMED = {
    "truncated": ([head(len(BODY)), BODY[:100]], True, 400, "truncated"),
    "slow": ([head(len(BODY)), BODY[:100]], False, 408, "slow"),
    "shorter than announced": ([head(len(BODY) - 9), BODY], False, 400, "json"),
    "without length": ([head(None), BODY], False, 411, "length"),
    "of a length that is no number": (
        [head(None, "Content-Length: 1_0"), BODY],
        False,
        411,
        "length",
    ),
    "of negative length": ([head(-1), BODY], False, 411, "length"),
    "of two lengths": ([head(5, f"Content-Length: {len(BODY)}"), BODY], False, 411, "length"),
    "in chunks": ([head(len(BODY), "Transfer-Encoding: chunked"), BODY], False, 411, "length"),
    "announced too large": ([head(ROOM + 1)], False, 413, "too-large"),
    "announced beyond all": ([head(10**30)], False, 413, "too-large"),
    "of another type": (
        [head(len(BODY)).replace(b"application/json", b"text/plain"), BODY],
        False,
        415,
        "media-type",
    ),
    "for another page": ([head(None, line="POST /admin HTTP/1.1")], False, 404, "path"),
    "for a path outside": ([head(None, line="GET /../../etc HTTP/1.1")], False, 404, "path"),
    "by another method": ([head(None, line="GET /score HTTP/1.1")], False, 405, "method"),
    "by an unknown method": ([head(None, line="BREW /score HTTP/1.1")], False, 501, "http"),
    "with a long line": ([b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"], False, 414, "http"),
    "with many headers": (
        [b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"],
        False,
        431,
        "http",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_answered_by_its_kind(server, name):
    pieces, shut, status, kind = MALFORMED[name]
    found, answer = said(server.url, *pieces, shut=shut)
    assert (found, answer["error"]["kind"]) == (status, kind)
    assert works(server)


def test_what_is_no_http_is_closed_and_forgotten(server):
    with pytest.raises(
        (IndexError, ValueError)
    ):  # it speaks the oldest HTTP then, without a status
        said(server.url, b"\x16\x03\x01\r\n\r\n")
    assert works(server)


def test_a_refused_request_is_not_read_as_two(server):
    """What follows a body that was announced too short must not become a request of its own."""
    smuggled = head(None, line=GET)
    status, answer = said(server.url, head(2), b"{}" + smuggled)
    assert (status, answer["error"]["kind"]) == (400, "version")


@pytest.mark.parametrize(
    "values", [[float("nan"), 1.0], [float("inf"), 0.0], [1.0], [1.0, 2.0, 3.0], None, "ab"]
)
def test_a_reward_that_is_wrong_is_an_error_and_no_score(values):
    with offered(lambda samples: values) as running:
        status, answer = posted(running.url, wire.encode(numbered(2), "npz"))
    assert (status, answer["error"]["kind"]) == (500, "reward")
    assert "rewards" not in answer


def test_a_reward_that_raises_names_the_sample_and_its_prompt():
    def picky(samples):
        if any(known["place"] == 1 for known in samples.metadata):
            raise KeyError("no ones")
        return place(samples)

    with offered(picky) as running:
        status, answer = posted(running.url, wire.encode(numbered(3), "npz"))
        assert (status, answer["error"]["kind"]) == (500, "reward")
        for part in ("'picky'", "no ones", "sample 1", "'prompt 1'"):
            assert part in answer["error"]["message"]
        assert posted(running.url, wire.encode(numbered(1), "npz"))[0] == 200


def test_a_connection_is_kept_for_further_requests(server):
    body = wire.encode(numbered(2), "png")
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    connection.connect()
    kept = connection.sock
    for _ in range(3):
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        assert connection.getresponse().read()
        assert connection.sock is kept
    connection.close()


# --- one at a time -------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3)])
def test_so_many_calls_of_a_reward_run_at_once_as_were_allowed(at_once, most):
    inside, seen, lock = [0], [], threading.Lock()

    def watched(samples):
        with lock:
            inside[0] += 1
            seen.append(inside[0])
        time.sleep(0.03)
        with lock:
            inside[0] -= 1
        return place(samples)

    with offered(watched, at_once=at_once) as running:
        score(remote(running.url, batch=1, concurrency=6), numbered(6))
        assert said(running.url, head(None, line=GET))[1]["answered"] == 6
    assert max(seen) == most


def test_who_does_not_wait_for_its_turn_is_passed_over():
    asked, release = [], threading.Event()

    def slow(samples):
        asked.append(len(samples))
        release.wait(5)
        return place(samples)

    with offered(slow) as running:
        first = threading.Thread(target=posted, args=(running.url, BODY))
        first.start()
        while not asked:
            time.sleep(0.01)
        with pytest.raises(OSError):  # noqa: PT011  a time limit, as of a client that gives up
            _give_up_after(running.url, wire.encode(numbered(2), "npz"), 0.1)
        release.set()
        first.join()
        posted(running.url, wire.encode(numbered(3), "npz"))
    assert asked == [1, 3]


def _give_up_after(url: str, body: bytes, seconds: float) -> None:
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(head(len(body)) + body)
        connection.recv(1)


# --- who may ask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [GET, "POST /score HTTP/1.1", "GET /nothing HTTP/1.1"])
@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", "Bearer correct-hors", f"Basic {TOKEN}", TOKEN, "Bearer ü"],
)
def test_without_the_token_nothing_is_answered(line, given):
    more = [] if given is None else [f"Authorization: {given}"]
    with offered(token=TOKEN) as running:
        status, answer = said(running.url, head(0, *more, line=line))
        assert (status, answer["error"]["kind"]) == (401, "token")
        assert TOKEN not in json.dumps(answer)
        assert said(running.url, head(None, f"Authorization: Bearer {TOKEN}", line=GET))[0] == 200


def test_a_large_request_without_the_token_still_gets_to_know_why():
    with offered(token=TOKEN) as running:
        body = request("a" * 2**22)
        assert posted(running.url, body)[0] == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_a_token_a_server_stays_on_this_machine(host):
    with pytest.raises(ValueError, match="there is no token"):
        RewardServer(Offer(reward=place, about={}), host, 0)


def test_with_a_token_a_server_may_be_reached_from_others():
    with serving.serving(Offer(reward=place, about={}, token=TOKEN), "0.0.0.0") as running:
        assert said(running.url, head(None, line=GET))[0] == 401


def test_an_address_that_is_taken_is_named(server):
    port = server.server_address[1]
    with pytest.raises(ValueError, match=f"port {port}"), offered(port=port):
        pass


# --- from the command line -----------------------------------------------------------------------


def test_a_reward_is_named_with_its_settings(tmp_path):
    assert load_reward("compressibility", ["--quality", "90"]) == Compressibility(quality=90)
    assert load_reward("my_rewards:redness") == Plugin(target="my_rewards:redness")
    recipe = tmp_path / "own.toml"
    recipe.write_text('[reward]\nname = "compressibility"\nquality = 80\n[training]\nsamples = 8\n')
    assert load_reward(str(recipe)) == Compressibility(quality=80)
    assert load_reward(str(recipe), ["--quality=70"]) == Compressibility(quality=70)
    recipe.write_text("seed = 1\n")
    for name, overrides, message in (
        ("compresibility", [], "did you mean 'compressibility'"),
        ("compressibility", ["--qualty", "90"], r"reward\.qualty.*did you mean 'quality'"),
        (str(recipe), [], "no table"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_reward(name, overrides)


def test_the_command_serves_a_reward_under_its_token_until_it_is_ended(
    monkeypatch, tmp_path, capsys
):
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("OUR_TOKEN", TOKEN)
    found = {}

    def meanwhile(running):
        found["rewards"] = score(remote(running.url, token_variable="OUR_TOKEN"), samples)
        found["health"] = said(running.url, head(None, f"Authorization: Bearer {TOKEN}", line=GET))[
            1
        ]
        raise KeyboardInterrupt

    samples = numbered(4, side=16)
    monkeypatch.setattr(RewardServer, "wait", meanwhile)
    for source in (["--token-file", str(token)], ["--token-variable", "OUR_TOKEN"]):
        words = ["serve-reward", "compressibility", "--port", "0", *source]
        assert cli.main([*words, "--quality", "50", "--max-bytes", "70000"]) == 0
        assert torch.equal(found["rewards"], score(Compressibility(quality=50), samples))
        assert found["health"]["reward"] == {"name": "compressibility", "quality": 50}
        assert found["health"]["max_bytes"] == 70000
    printed = capsys.readouterr()
    assert "compressibility at http://127.0.0.1:" in printed.out
    assert TOKEN not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "there is no token"),
        (["--token-file", "nowhere"], "no such file"),
        (["--token-variable", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (["--max-bytes", "0"], "max_bytes = 0"),
        (["--at-once", "0"], "at_once = 0"),
        (["--port", "70000"], "port 70000"),
        (["--quality", "101"], "1 to 100"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(words, message, capsys):
    assert cli.main(["serve-reward", "compressibility", "--port", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_token_is_none(tmp_path, capsys):
    (tmp_path / "token").write_text("\n")
    words = ["serve-reward", "brightness", "--port", "0", "--token-file", str(tmp_path / "token")]
    assert cli.main(words) == 2
    assert "holds no token" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"servers": ()},
        {"servers": ("127.0.0.1:8000",)},
        {"servers": ("ftp://127.0.0.1",)},
        {"servers": ("http://127.0.0.1:port",)},
        {"servers": ("http://127.0.0.1/score",)},
        {"servers": ("http://127.0.0.1?a=b",)},
        {"servers": ("http://a:8000", "http://a:8000")},
        {"batch": 0},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"retries": -1},
        {"backoff": -0.1},
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError):  # noqa: PT011  one of many messages
        Remote(**{"servers": ("http://127.0.0.1:8000",), **settings})


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="token_variable") as caught:
        Remote(servers=(f"http://me:{TOKEN}@host:8000",))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("reward", [Brightness(), Compressibility(quality=50)])
def test_a_built_in_reward_is_the_same_from_afar(reward):
    samples = numbered(5, side=16)
    with offered(reward) as running:
        rewards = score(remote(running.url, batch=5), samples)
    assert np.array_equal(rewards.numpy(), score(reward, samples).numpy())
