"""`labkit serve` as its clients meet it: in a process of its own, by OpenAI's client and others."""

import asyncio
import gc
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import psutil
import pytest
import torch
from commands import environment, here, sentences, start
from starlette.testclient import TestClient
from training import tiny_model

import labkit
from labkit.__main__ import main
from labkit.models.huggingface import save_pretrained
from labkit.serving import Kept, Limits, TextPieces, build_app
from labkit.serving.gate import Gate
from labkit.text import train_bpe

openai = pytest.importorskip("openai", reason="needs openai: pip install -e .[test]")

pytestmark = pytest.mark.multi

CONTEXT = 256
PROMPTS = ["the key", "Amara went to the garden and", "", "bread found", "Größe 漢字 🙂"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of a few thousand weights, so large that what it writes depends on all it has read.

    It writes bytes as they come: half letters are frequent.
    """
    where = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = train_bpe(sentences(200), 320)
    model = tiny_model(
        vocab_size=tokenizer.vocab_size, context_length=CONTEXT, initializer_range=0.5
    )
    return save_pretrained(model, where, tokenizer)


@pytest.fixture(scope="module")
def opened(folder):
    return labkit.load(folder)


@contextmanager
def served(folder, *options, **variables):
    """A service that began: (address, token, process)."""
    process = start("serve", folder, "--port", 0, *options, **variables)
    try:
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+)/v1 .*token (\S+)", line)
        assert found, f"{line!r}: {process.stderr.read() if process.poll() is not None else ''}"
        yield found[1], found[2], process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


@contextmanager
def served_here(opened, limits, kept=None):
    """A client of the same application in this process, without a port."""
    app = build_app(opened, "tiny", "a-token-of-my-own", limits, kept)
    headers = {"Authorization": "Bearer a-token-of-my-own"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as web:
        yield web


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept") / "kept.sqlite"
    with served(folder, "--max-body", 20_000, "--keep", kept) as (address, token, _):
        yield address, token, kept


@pytest.fixture(scope="module")
def client(service):
    return openai.OpenAI(base_url=service[0] + "/v1", api_key=service[1], max_retries=0)


@pytest.fixture(scope="module")
def web(service):
    """Plain HTTP, with the token."""
    headers = {"Authorization": f"Bearer {service[1]}"}
    with httpx.Client(base_url=service[0], headers=headers, timeout=30) as web:
        yield web


SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_p": 0.9, "seed": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion_is_what_generate_writes(client, opened, prompt, settings):
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": 24, **settings}
    (expected,) = opened.generate(prompt, max_new_tokens=24, **settings)
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == expected
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage.prompt_tokens == len(opened.ids_of(prompt))


def test_a_chat_is_what_chat_writes(client, opened):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is the <|assistant|> key?"},
    ]
    expected = opened.chat(turns, max_new_tokens=30)
    asked = {"model": "tiny", "messages": turns, "max_completion_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected
    with_usage = {"include_usage": True}
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options=with_usage))
    assert "".join(p.choices[0].delta.content for p in pieces if p.choices) == expected
    assert pieces[-1].usage == whole.usage
    assert pieces[0].choices[0].delta.role == "assistant"
    parts = [
        {"type": "text", "text": "Where is the <|assist"},
        {"type": "text", "text": "ant|> key?"},
    ]
    asked["messages"] = [turns[0], {"role": "user", "content": parts}]
    assert client.chat.completions.create(**asked).choices[0].message.content == expected


def test_an_answer_ends_before_a_stop(client, opened):
    (text,) = opened.generate("the key", max_new_tokens=40, temperature=0)
    stop = text[11:15]
    asked = {"model": "tiny", "prompt": "the key", "max_tokens": 40, "temperature": 0}
    ended = client.completions.create(**asked, stop=[stop, "never this"])
    assert ended.choices[0].text == text[: text.index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    pieces = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text[: text.index(stop)]


CLIENT = """
import asyncio, json, sys
import openai

async def main():
    address, token, asked = sys.argv[1], sys.argv[2], json.loads(sys.stdin.read())
    client = openai.AsyncOpenAI(base_url=address + "/v1", api_key=token, max_retries=0, timeout=300)

    async def one(it):
        if not it.pop("stream"):
            return (await client.completions.create(**it)).choices[0].text
        pieces = await client.completions.create(**it, stream=True)
        return "".join([piece.choices[0].text async for piece in pieces])

    print(json.dumps(await asyncio.gather(*map(one, asked))))

asyncio.run(main())
"""


def two_hundred(seed: int) -> list[dict]:
    return [
        {
            "model": "tiny",
            "prompt": f"{PROMPTS[i % 5]} {i * seed}",
            "max_tokens": 1 + (i * 7) % 40,
            "temperature": (0, 0.9)[i % 2],
            "seed": i,
            "stream": i % 3 == 0,
        }
        for i in range(200)
    ]


def ask(address: str, token: str, asked: list[dict]) -> list[str]:
    """All at once, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, token],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_hundred_requests_at_once_lose_nothing_and_leave_nothing(folder, opened):
    """Answers as `generate`'s; then twice more, and the service's memory has not grown."""
    with served(folder, "--slots", 8) as (address, token, process):
        memory = []
        for seed in (1, 2, 3):
            asked = two_hundred(seed)
            said = ask(address, token, asked)
            memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            if seed == 1:
                for it, text in zip(asked, said, strict=True):
                    (expected,) = opened.generate(
                        it["prompt"],
                        max_new_tokens=it["max_tokens"],
                        temperature=it["temperature"],
                        seed=it["seed"],
                    )
                    assert text == expected, it
        assert memory[2] - memory[0] < 10, f"MB after each two hundred: {memory}"
        counted = metrics(address, token)
        assert counted['labkit_requests_total{path="/v1/completions",status="200"}'] == 600
        assert counted["labkit_running"] == counted["labkit_waiting"] == 0
        steps, served_in_them = (counted[f"labkit_step_requests_{it}"] for it in ("count", "sum"))
        assert served_in_them / steps > 3, "they shared the model's steps"


def metrics(address: str, token: str) -> dict[str, float]:
    text = httpx.get(address + "/metrics", headers={"Authorization": f"Bearer {token}"}).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


def refusal(response: httpx.Response) -> tuple[int, str]:
    """The status and the sentence."""
    return response.status_code, response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "the body is no JSON"),
        (b"", "the body is no JSON"),
        (b'"text"', "the body 'text'"),
        (b"\xff\xfe{}", "the body is no JSON"),
        (b"[" * 15_000, "the body is no JSON"),
        (b"{}", "prompt: Field required"),
        (b'{"prompt": 5}', "prompt 5: Input should be a valid string"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens 0"),
        (b'{"prompt": "a", "temperature": -1}', "temperature -1"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature nan: Input should be"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature inf"),
        (b'{"prompt": "a", "top_p": 0}', "top_p 0"),
        (b'{"prompt": "a", "n": 2}', "n 2"),
        (b'{"prompt": "a", "logprobs": 5}', "logprobs is not offered here: leave it out"),
        (b'{"prompt": "a", "stop": ["", "b"]}', "stop"),
        (b'{"prompt": "a", "seed": -3}', "seed -3"),
        (b'{"prompt": "a", "max_tokens": 255}', "room for 256: shorten one of them"),
        (b'{"prompt": "\\ud800"}', ""),
    ],
    ids=lambda it: str(it)[:40],
)
def test_a_bad_body_is_refused_in_one_sentence(web, content, named):
    status, sentence = refusal(web.post("/v1/completions", content=content))
    assert status == 400
    assert named in sentence
    assert "\n" not in sentence
    assert web.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": []}, "messages []"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role 'wizard'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "'text' can be read",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "tools": []}, "tools is not offered"),
    ],
)
def test_a_bad_conversation_is_refused_in_one_sentence(web, body, named):
    status, sentence = refusal(web.post("/v1/chat/completions", json=body))
    assert status == 400
    assert named in sentence


def test_the_token_is_needed_and_the_page_and_health_are_not(service):
    address, token, _ = service
    paths = [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/completions"), ("GET", "/x")]
    wrong = ["", "Bearer", f"Bearer {token[:-1]}", f"Bearer {token}x", f"Basic {token}", token, "é"]
    for method, path in paths:
        for header in wrong:
            headers = {"Authorization": header.encode()}
            status, sentence = refusal(httpx.request(method, address + path, headers=headers))
            assert (status, "token is missing or wrong" in sentence) == (401, True)
    assert httpx.get(address + "/health").status_code == 200
    page = httpx.get(address + "/")
    assert page.status_code == 200
    assert token not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    with pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
        openai.OpenAI(base_url=address + "/v1", api_key="no", max_retries=0).models.list()


def test_a_huge_body_is_refused_and_never_held(service, web):
    """Declared or not: 60 MB pass by and the limit of 20,000 bytes is named."""
    status, sentence = refusal(web.post("/v1/completions", content=b"x" * 20_001))
    assert (status, "20001 bytes or more and 20000 are allowed" in sentence) == (413, True)

    def pieces():
        for _ in range(60):
            yield b"x" * 2**20

    status, sentence = refusal(web.post("/v1/completions", content=pieces()))
    assert (status, "20000 are allowed" in sentence) == (413, True)
    assert web.get("/health").status_code == 200


def test_a_huge_body_is_refused_before_it_is_sent(service):
    """Ten gigabytes are announced and none comes; an endless one is left at the limit."""
    address, token, _ = service
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    for rest in (
        b"Content-Length: 10000000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"2710\r\n" + b"x" * 10_000 + b"\r\n") * 3,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(head.encode() + rest)
            assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    async def never() -> None:
        await asyncio.sleep(100)

    async def app(*_: object) -> None:
        raise AssertionError("it is not called")

    async def once() -> None:
        scope = {"type": "http", "path": "/", "headers": [(b"content-length", b"9")]}
        await Gate(app, "token", 100, lambda *it: counted.append(it))(scope, never, keep)

    async def keep(message: dict) -> None:
        sent.append(message)

    sent, counted = [], []
    monkeypatch.setattr("labkit.serving.gate.BODY_SECONDS", 0.01)
    asyncio.run(once())
    assert counted == [("/", 408)]
    assert b"did not arrive within 0.01 s" in sent[1]["body"]


def test_a_model_that_fails_is_said_and_no_more_of_it(folder, caplog):
    opened = labkit.load(folder)
    torch.nn.init.constant_(opened.model.final_norm.weight, float("nan"))
    with served_here(opened, Limits(slots=2, length=CONTEXT)) as web:
        for stream in (False, True):
            body = {"prompt": "secret", "max_tokens": 3, "stream": stream}
            status, sentence = refusal(web.post("/v1/completions", json=body))
            assert (status, sentence) == (500, "the model failed: the service's log says how")
        assert web.get("/health").json() == {"status": "ok"}
        assert "labkit_running 0.0" in web.get("/metrics").text
    assert "its weights are damaged" in caplog.text
    assert "secret" not in caplog.text
    assert "a-token" not in caplog.text


def test_unknown_paths_methods_and_models_say_what_there_is(web):
    status, sentence = refusal(web.get("/v2/nothing"))
    assert (status, "/v1/chat/completions" in sentence) == (404, True)
    assert refusal(web.get("/v1/completions"))[0] == 405
    body = {"prompt": "a", "model": "gpt-9"}
    status, sentence = refusal(web.post("/v1/completions", json=body))
    assert (status, sentence) == (404, "model 'gpt-9' is not served here: ask for 'tiny'")
    assert web.get("/v1/models").json()["data"][0]["id"] == "tiny"


def long_stream(address, token, **body):
    """A connection that begins a long answer, and its first bytes."""
    host, port = address.removeprefix("http://").split(":")
    asked = json.dumps({"prompt": "a", "max_tokens": 200, "stream": True, "seed": 1, **body})
    line = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    line.sendall(f"{head}Content-Length: {len(asked)}\r\n\r\n{asked}".encode())
    return line


def eventually(true, seconds: float = 30.0):
    """Wait for what happens in another process; fail if it never does."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
    return found


def test_a_client_that_hangs_up_frees_its_slot(folder):
    """In a stream, before its first token, while it waits in the queue, in the middle of a body."""
    with served(folder, "--slots", 2) as (address, token, process):
        lines = [long_stream(address, token, stream=i % 2 == 0) for i in range(8)]
        assert lines[0].recv(100).startswith(b"HTTP/1.1 200")
        half = socket.create_connection(lines[0].getpeername())
        half.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Length: 999\r\n\r\n{".encode()
        )
        for line in [*lines, half]:
            line.close()
        eventually(lambda: metrics(address, token)["labkit_running"] == 0)
        counted = metrics(address, token)
        assert counted["labkit_waiting"] == 0
        assert counted["labkit_left_total"] >= 4
        assert counted["labkit_written_tokens_total"] < 8 * 200, "nobody writes on for them"
        client = openai.OpenAI(base_url=address + "/v1", api_key=token, max_retries=0)
        assert client.completions.create(model="tiny", prompt="a", max_tokens=3).choices
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, "Traceback" in err) == (0, False)


def test_a_full_queue_and_a_long_answer_have_their_own_statuses(folder):
    with served(folder, "--slots", 1, "--queue", 1, "--max-seconds", 0.3) as (address, token, _):
        client = openai.AsyncOpenAI(base_url=address + "/v1", api_key=token, max_retries=0)

        async def one(i: int) -> str:
            try:
                asked = {"model": "tiny", "prompt": "a", "max_tokens": 240, "seed": i}
                return (await client.completions.create(**asked)).choices[0].finish_reason
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.body['message']}"

        async def many() -> list[str]:
            return await asyncio.gather(*map(one, range(30)))

        said = asyncio.run(many())
        full = [it for it in said if it.startswith("429")]
        late = [it for it in said if it.startswith("504")]
        assert len(full) >= 20
        assert "2 requests run or wait and 2 may: ask again in a moment" in full[0]
        for it in late:
            assert "longer than the 0.3 s that a request may take: ask for fewer tokens" in it
        assert len(full) + len(late) + said.count("length") + said.count("stop") == 30
        answer = httpx.post(
            address + "/v1/completions",
            headers={"Authorization": f"Bearer {token}"},
            json={"prompt": "a", "max_tokens": 1},
        )
        assert answer.status_code == 200, "afterwards it serves on"


def test_time_is_up_for_an_answer_that_is_not_ready(opened):
    with served_here(opened, Limits(length=CONTEXT, seconds=1e-9)) as web:
        for stream in (False, True):
            body = {"prompt": "a", "max_tokens": 100, "stream": stream}
            assert refusal(web.post("/v1/completions", json=body))[0] == 504
        assert "labkit_expired_total 2.0" in web.get("/metrics").text


def test_requests_and_feedback_are_kept_when_asked(service, client, web):
    turns = [{"role": "user", "content": "Where is the key?"}]
    asked = {"model": "tiny", "messages": turns, "max_tokens": 8, "seed": 2}
    private = client.chat.completions.create(**asked)
    good = client.chat.completions.create(**asked, store=True)
    bad = "".join(p.id for p in client.chat.completions.create(**asked, store=True, stream=True))
    bad = bad[: len(good.id)]
    for id, rating in ((good.id, 1), (bad, -1)):
        said = web.post("/v1/feedback", json={"id": id, "rating": rating, "comment": "my view"})
        assert said.json() == {"id": id, "rating": rating}
    status, sentence = refusal(web.post("/v1/feedback", json={"id": private.id, "rating": 1}))
    assert (status, "was kept" in sentence) == (404, True)
    assert refusal(web.post("/v1/feedback", json={"id": good.id, "rating": 5}))[0] == 400

    kept = Kept(service[2])
    assert service[2].stat().st_mode & 0o777 == 0o600, "nobody else reads what people wrote"
    found = {it["id"]: it for it in kept.requests()}
    assert private.id not in found
    assert found[good.id]["ratings"] == [1]
    assert found[bad]["answer"] == found[good.id]["answer"] == good.choices[0].message.content
    assert found[good.id]["finish"] == "length", "cut: nothing to learn an end from"
    assert kept.conversations() == kept.preferences() == []


def test_what_people_liked_is_learned_and_served_again(folder, tmp_path, capsys):
    """The loop: kept, rated, collected, fine-tuned (`--task chat`), served to OpenAI's client."""
    kept = Kept(tmp_path / "kept.sqlite")
    for i in range(60):
        asked = [{"role": "user", "content": f"Where is the key {i}?"}]
        for answer, rating in (("in the house", 1), ("the the the", -1)):
            kept.request(f"{i} {answer}", "chat", asked, answer, "stop", {})
            kept.feedback(f"{i} {answer}", rating)
    kept.close()
    assert here("collect", tmp_path / "kept.sqlite", "--out", tmp_path / "collected") == 0
    data, out = tmp_path / "collected" / "conversations.jsonl", tmp_path / "run"
    assert f"{data}: 60 chats" in capsys.readouterr().out
    settings = ("--epochs", 8, "--batch-size", 8, "--learning-rate", 1e-2, "--precision", "fp32")
    assert here("finetune", "--data", data, "--model", folder, "--out", out, *settings) == 0
    with served(out) as (address, token, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=token, max_retries=0)
        turns = [{"role": "user", "content": "Where is the key 71?"}]
        asked = {"model": "run", "messages": turns, "max_tokens": 20, "temperature": 0}
        said = client.chat.completions.create(**asked).choices[0]
    assert said.message.content == labkit.load(out).chat(turns, max_new_tokens=20)
    assert (said.message.content, said.finish_reason) == ("in the house", "stop")


def test_a_service_that_keeps_nothing_says_so(opened):
    with served_here(opened, Limits(length=CONTEXT)) as web:
        body = {"prompt": "a", "max_tokens": 1, "store": True}
        assert refusal(web.post("/v1/completions", json=body)) == (
            400,
            "store is true and this service keeps nothing: leave it out",
        )


def test_a_file_that_takes_no_more_is_said(opened, tmp_path):
    kept = Kept(tmp_path / "kept.sqlite")
    with served_here(opened, Limits(length=CONTEXT), kept) as web:
        kept.close()  # as a full disk, for those who write
        body = {"prompt": "a", "max_tokens": 2}
        said = "the service failed: its log says how"
        stored = web.post("/v1/completions", json={**body, "store": True})
        assert refusal(stored) == (500, f"{said}, or ask without store")
        stream = web.post("/v1/completions", json={**body, "store": True, "stream": True})
        assert f"{said}, or ask without store" in stream.text
        assert refusal(web.post("/v1/feedback", json={"id": "x", "rating": 1})) == (500, said)
        assert web.post("/v1/completions", json=body).status_code == 200


def test_it_ends_cleanly_running_answers_first(folder, opened):
    (expected,) = opened.generate("the key", max_new_tokens=200, temperature=0)
    with served(folder, "--grace", 30) as (address, token, process):
        client = openai.OpenAI(base_url=address + "/v1", api_key=token, max_retries=0)
        asked = {"model": "tiny", "prompt": "the key", "max_tokens": 200, "temperature": 0}
        pieces = iter(client.completions.create(**asked, stream=True))
        text = next(pieces).choices[0].text
        process.send_signal(signal.SIGTERM)
        text += "".join(piece.choices[0].text for piece in pieces)
        assert text == expected
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in err
        with pytest.raises(httpx.ConnectError):
            httpx.get(address + "/health")


def test_who_still_waits_when_the_grace_is_over_is_told(folder):
    """One slot and far more work than a second's: each request has its answer or its sentence."""
    with served(folder, "--slots", 1, "--grace", 1) as (address, token, process):
        client = openai.AsyncOpenAI(base_url=address + "/v1", api_key=token, max_retries=0)

        async def one(i: int) -> str:
            try:
                asked = {"model": "tiny", "prompt": "a", "max_tokens": 250, "seed": i}
                return (await client.completions.create(**asked)).choices[0].finish_reason
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.body['message']}"

        async def many() -> list[str]:
            asked = [asyncio.create_task(one(i)) for i in range(100)]
            await asyncio.sleep(0)
            while metrics(address, token)["labkit_waiting"] < 50:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

        said = asyncio.run(many())
        told = said.count("503 the service is shutting down: ask another one")
        assert told > 0
        assert told + said.count("length") + said.count("stop") == 100
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")


def test_a_killed_service_loses_no_answer_that_was_seen(folder, tmp_path):
    """kill -9 in the middle: clients get an error, what they had seen whole is in the file."""
    file, variables = tmp_path / "kept.sqlite", {"LABKIT_TOKEN": "a-token-of-my-own"}
    seen = []
    with served(folder, "--keep", file, **variables) as (address, token, process):
        assert token == "a-token-of-my-own"
        client = openai.OpenAI(base_url=address + "/v1", api_key=token, max_retries=0)
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 5}
        asked["extra_body"] = {"store": True}  # of chats only in OpenAI's own interface
        seen = [client.completions.create(**asked).id for _ in range(5)]
        pieces = iter(client.completions.create(**{**asked, "max_tokens": 240}, stream=True))
        next(pieces)
        process.kill()
        process.wait()
        with pytest.raises((httpx.HTTPError, openai.APIError, *_of_the_client())):
            list(pieces)
    assert {it["id"] for it in Kept(file).requests()} >= set(seen)
    port = address.rsplit(":", 1)[1]
    with served(folder, "--port", port, "--keep", file, **variables) as (again, token, _):
        assert again == address
        client = openai.OpenAI(base_url=again + "/v1", api_key=token, max_retries=0)
        seen.append(client.completions.create(**asked).id)
    assert {it["id"] for it in Kept(file).requests()} >= set(seen)


def _of_the_client() -> tuple[type[Exception], ...]:
    """What the HTTP library under `openai` raises; which one that is depends on its version."""
    names = {"httpx", "httpx2"} & set(sys.modules)
    return tuple(sys.modules[name].HTTPError for name in names)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--port", 70000], "port 70000 is out of range"),
        (["--slots", 0], "slots 0 is out of range"),
        (["--queue", -1], "queue -1 is out of range"),
        (
            ["--max-length", 257],
            "max_length 257 is out of range: choose 1 to the model's context, 256",
        ),
        (["--max-seconds", 0], "max_seconds 0.0 is out of range"),
        (["--grace", 0], "grace 0.0 is out of range"),
        (["--keep", "/"], "cannot keep requests"),
        (["--host", "192.0.2.1"], "port 8000 of 192.0.2.1 cannot be used"),
    ],
)
def test_impossible_options_are_named(folder, options, named, capsys):
    assert here("serve", folder, *options) == 2
    assert named in capsys.readouterr().err


def test_a_port_in_use_and_a_weak_token_are_named(folder, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert here("serve", folder, "--port", taken.getsockname()[1]) == 2
    assert "cannot be used" in capsys.readouterr().err
    monkeypatch.setenv("LABKIT_TOKEN", "short")
    assert here("serve", folder, "--port", 0) == 2
    assert "LABKIT_TOKEN has 5 characters: give at least 16" in capsys.readouterr().err


@pytest.mark.parametrize("stops", [(), ("lamp",), ("🙂🙂", "key la")])
def test_pieces_of_a_text_are_whole_letters_and_add_up(stops):
    text = "the 🙂 key lamp 漢字 garden"
    tokenizer = train_bpe(sentences(50), 300)
    pieces, sent = TextPieces(tokenizer, stops), []
    for token in tokenizer.encode(text):
        sent.append(pieces.add(token))
        if pieces.stopped:
            break
    sent.append(pieces.finish())
    expected = {(): text, ("lamp",): "the 🙂 key ", ("🙂🙂", "key la"): "the 🙂 "}[stops]
    assert "".join(sent) == pieces.text == expected
    assert not any("�" in piece for piece in sent)
    plain = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert any("�" in piece for piece in plain), "token by token, letters break"


def test_a_service_searches_for_unused_objects_again_once_it_serves(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("labkit.serving.serve", lambda *_, **__: seen.append(gc.isenabled()))
    assert main(["serve", str(folder)]) == 0
    monkeypatch.setattr(
        "labkit.commands.serving.load", lambda *_, **__: seen.append(gc.isenabled())
    )
    with pytest.raises(AttributeError):  # what was opened here is None
        main(["serve", str(folder)])
    assert seen == [True, False]
    assert gc.isenabled()
