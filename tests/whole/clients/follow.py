"""Follows works through nats-py: prints a line for each thing that it has seen hold."""

import asyncio
import base64
import hashlib
import json
import os

import msgpack
import nats

PACKED = {"Content-Type": "application/msgpack"}


def equal(one, other):
    assert one == other, f"{one!r} is not {other!r}"


def plain(said):
    """Bytes, whichever way they came."""
    if isinstance(said, bytes):
        return said
    return said.encode() if isinstance(said, str) else base64.b64decode(said["base64"])


async def ask(bus, verb, **body):
    answer = json.loads((await bus.request(f"lh.work.{verb}", json.dumps(body).encode(), timeout=60)).data)
    assert "error" not in answer, answer
    return answer


async def follow(bus, packed=False, acknowledge=True, most=None, **body):
    """Every reply, until the empty one or until there are `most`."""
    inbox = bus.new_inbox()
    replies = await bus.subscribe(inbox)
    data = msgpack.packb(body) if packed else json.dumps(body).encode()
    await bus.publish("lh.work.follow", data, reply=inbox, headers=PACKED if packed else None)
    said = []
    while True:
        message = await replies.next_msg(timeout=60)
        if not message.data:
            assert not (message.headers or {}).get("Status"), message.headers
            break
        said.append(msgpack.unpackb(message.data) if packed else json.loads(message.data))
        if most is not None and len(said) >= most:
            break
        if acknowledge and message.reply:
            await bus.publish(message.reply)
    await replies.unsubscribe()
    return said


def written(said, stream="stdout"):
    """What a job wrote, by the offsets of its frames: nothing twice, nothing missing."""
    out = b""
    for output in (one["output"] for one in said if "output" in one):
        if output["stream"] == stream:
            equal(output["offset"], len(out))
            out += plain(output["bytes"])
    return out


def facts(said):
    """Which facts; but that a work has finished is recorded a moment after who follows was told so."""
    kinds = [one["fact"]["kind"] for one in said if "fact" in one]
    return [kind for kind in kinds if kind != "finished"]


async def main():
    bus = await nats.connect(os.environ["NATS_URL"], user_credentials=os.environ["NATS_CREDS"])

    work = (await ask(bus, "submit", argv=["sh", "-c", "printf 'a\\377'; echo err >&2; sleep 0.3; printf 'b\\000'"]))["work"]
    for packed in (False, True):
        said = await follow(bus, packed, work=work)
        equal((written(said), written(said, "stderr")), (b"a\xffb\x00", b"err\n"))
        kinds = [one["fact"]["kind"] for one in said if "fact" in one]
        equal(kinds[:2], ["accepted", "assigned"])
        assert "ended" in kinds, kinds
        equal(said[-1]["summary"]["state"], "finished")
    print("facts, any bytes and the summary come in both encodings, live and later")

    size = 3_000_000
    script = f"import sys, random; sys.stdout.buffer.write(random.Random(7).randbytes({size}))"
    big = (await ask(bus, "submit", argv=["python3", "-c", script]))["work"]
    whole = await follow(bus, packed=True, work=big)
    out = written(whole)
    equal(len(out), size)
    print("who acknowledges is sent everything, in order")

    # Stopping anywhere and going on behind the last cursor must make no difference.
    digest = hashlib.sha256(out).hexdigest()
    for stop in (1, 3, len(whole) // 2, len(whole) - 1):
        head = await follow(bus, packed=True, work=big, most=stop)
        tail = await follow(bus, packed=True, work=big, **{"from": head[-1]["cursor"]})
        equal(hashlib.sha256(written(head + tail)).hexdigest(), digest)
        equal(facts(head + tail), facts(whole))
    print("a cursor goes on exactly where it was taken")

    said = await follow(bus, work=work, acknowledge=False)
    equal(written(said), b"a\xffb\x00")
    print("who never acknowledges is sent it, too")

    graph = await ask(
        bus,
        "submit",
        tasks=[
            {"name": "many", "run": {"process": {"argv": ["echo", "{index}"]}}, "array": {"count": 5}},
            {"name": "last", "needs": ["many"], "run": {"process": {"argv": ["echo", "end"]}}},
        ],
    )
    said = await follow(bus, work=graph["work"], task="many", index=3)
    equal([(one["output"]["task"], one["output"]["index"], one["output"]["bytes"]) for one in said if "output" in one], [("many", 3, "3\n")])
    print("one task and one index can be followed alone")

    await bus.close()


asyncio.run(main())
