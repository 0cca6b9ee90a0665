"""Works through nats-py, in JSON and in MessagePack: prints a line for each thing that it has seen hold."""

import asyncio
import base64
import json
import os
import secrets
import time
import uuid

import msgpack
import nats

PACKED = {"Content-Type": "application/msgpack"}
BYTES = bytes(range(256)) * 3


def uuid7():
    bits = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return str(uuid.UUID(int=bits & ~(0xF << 76 | 3 << 62) | 7 << 76 | 2 << 62))


class Json:
    name = "json"
    headers = None
    pack = staticmethod(lambda body: json.dumps(body).encode())
    unpack = staticmethod(json.loads)
    # Bytes as the encoding says them.
    bytes = staticmethod(lambda data: {"base64": base64.b64encode(data).decode()})
    text = staticmethod(lambda text: text)


class MsgPack:
    name = "msgpack"
    headers = PACKED
    pack = staticmethod(msgpack.packb)
    unpack = staticmethod(msgpack.unpackb)
    bytes = staticmethod(lambda data: data)
    text = staticmethod(lambda text: text.encode())


class House:
    def __init__(self, bus, wire):
        self.bus, self.wire = bus, wire

    async def raw(self, verb, body):
        subject = verb if "." in verb else f"lh.work.{verb}"
        return await self.bus.request(subject, self.wire.pack(body), timeout=60, headers=self.wire.headers)

    async def ask(self, verb, **body):
        message = await self.raw(verb, body)
        answer = self.wire.unpack(message.data)
        assert "error" not in answer, answer
        return answer

    async def refused(self, verb, **body):
        message = await self.raw(verb, body)
        error = self.wire.unpack(message.data)["error"]
        assert message.headers["Nats-Service-Error"], message.headers
        return error["code"], message.headers["Nats-Service-Error-Code"]


def equal(one, other):
    assert one == other, f"{one!r} is not {other!r}"


async def runs(house):
    wire = house.wire
    done = await house.ask("run", argv=["sh", "-c", "echo out; echo err >&2; exit 3"])
    equal((done["state"], done["exit_code"], done["signal"]), ("failed", 3, None))
    equal((done["stdout"], done["stderr"]), (wire.text("out\n"), wire.text("err\n")))
    equal((done["stdout_bytes"], done["node"], done["attempt"]), (4, "home", 1))
    print(f"{wire.name}: run answers with output and exit code")

    done = await house.ask("run", argv=["sh", "-c", "kill -9 $$"])
    equal((done["state"], done["exit_code"], done["signal"]), ("failed", None, 9))
    print(f"{wire.name}: a signal is a signal")

    done = await house.ask("run", argv=["cat"], stdin=wire.bytes(BYTES))
    equal((done["state"], done["stdout"]), ("finished", wire.bytes(BYTES)))
    done = await house.ask("run", run={"echo": wire.bytes(BYTES)})
    equal((done["state"], done["stdout"]), ("finished", wire.bytes(BYTES)))
    print(f"{wire.name}: any bytes go in and come out")

    done = await house.ask(
        "run",
        argv=["sh", "-c", "printf '\\377\\000' > thing"],
        outputs=[{"name": "thing", "path": "thing"}],
    )
    equal(done["outputs"], {"thing": wire.bytes(b"\xff\x00")})
    print(f"{wire.name}: a declared output comes back")


async def asks_again(house):
    wire = house.wire
    work = uuid7()
    body = {"work": work, "argv": ["sh", "-c", "echo once; exec sleep 1"]}
    held = await house.ask("run", **body, hold_s=0.05)
    assert held["state"] in ("waiting", "running"), held
    again = await asyncio.gather(*(house.ask("run", **body, hold_s=30) for _ in range(5)))
    for done in again:
        equal((done["work"], done["state"]), (work, "finished"))
        equal((done["attempt"], done["stdout"]), (1, wire.text("once\n")))
    first = await house.ask("submit", **body)
    equal((first["work"], first["state"]), (work, "finished"))
    print(f"{wire.name}: the same id is the same work, however often it is asked for")

    equal(await house.refused("submit", work=work, argv=["another"]), ("id_taken", "409"))
    print(f"{wire.name}: the same id with another spec is refused")


async def asks_about(house):
    wire = house.wire
    name = f"about {wire.name}"
    submitted = await house.ask(
        "submit", name=name, array={"items": list("abcde")}, argv=["sh", "-c", "echo {item}; test {item} != c"]
    )
    equal((submitted["name"], submitted["owner"]), (name, "owner"))
    waited = await house.ask("wait", work=name)
    task = waited["tasks"][0]
    equal((waited["state"], task["total"], task["finished"], task["failed"]), ("failed", 5, 4, 1))
    equal([failure["index"] for failure in task["first_failures"]], [2])
    equal(await house.ask("get", work=submitted["work"]), waited)
    print(f"{wire.name}: wait and get tell how it stands")

    listed = await house.ask("list", name=name, states=["failed"], limit=1)
    equal([work["work"] for work in listed["works"]], [submitted["work"]])
    print(f"{wire.name}: list finds it")

    items, start, pages = [], None, 0
    while True:
        page = await house.ask("results", work=name, limit=2, **({"from": start} if start else {}))
        items += page["items"]
        pages += 1
        start = page["next"]
        if start is None:
            break
    equal([(item["index"], item["stdout"]) for item in items], [(n, wire.text(f"{c}\n")) for n, c in enumerate("abcde")])
    assert pages >= 3, pages
    only = await house.ask("results", work=name, only="failed")
    equal([(item["index"], item["exit_code"]) for item in only["items"]], [(2, 1)])
    print(f"{wire.name}: results come in pages")

    request = str(uuid.uuid4())
    for _ in range(2):
        retried = await house.ask("retry", work=name, request=request)
        equal(retried["round"], 1)
    waited = await house.ask("wait", work=name)
    equal((waited["round"], waited["tasks"][0]["failed"]), (1, 1))
    only = await house.ask("results", work=name, only="failed")
    equal([(item["index"], item["attempt"]) for item in only["items"]], [(2, 2)])
    print(f"{wire.name}: retry tries again what failed, once a request")

    work = (await house.ask("submit", argv=["sleep", "1000"]))["work"]
    await house.ask("cancel", work=work)
    equal((await house.ask("wait", work=work))["state"], "cancelled")
    print(f"{wire.name}: cancel ends it")

    work = (await house.ask("submit", open=True, argv=["echo", "{item}"], array={"items": ["a"]}))["work"]
    for _ in range(2):
        part = await house.ask("append", work=work, part=1, items={"task": "main", "items": ["b", "c"]})
        equal(part["part"], 1)
    equal(await house.refused("append", work=work, part=3, items={"task": "main", "items": ["d"]}), ("part_missing", "409"))
    await house.ask("close", work=work, parts=1)
    equal((await house.ask("wait", work=work))["tasks"][0]["finished"], 3)
    print(f"{wire.name}: an open work grows in parts")

    nodes = await house.ask("lh.sched.main.nodes")
    equal([node["node"] for node in nodes["nodes"]], ["home"])
    print(f"{wire.name}: the scheduler tells its nodes")


async def crosses(bus):
    asked = await bus.request(
        "lh.work.run", json.dumps({"run": {"echo": "\u00e4"}}).encode(), timeout=60, headers={"Accept": PACKED["Content-Type"]}
    )
    equal(msgpack.unpackb(asked.data)["stdout"], "\u00e4".encode())
    equal(asked.headers["Content-Type"], PACKED["Content-Type"])
    asked = await bus.request(
        "lh.work.run", msgpack.packb({"run": {"echo": b"\xff"}}), timeout=60, headers=PACKED | {"Accept": "application/json"}
    )
    equal(json.loads(asked.data)["stdout"], {"base64": "/w=="})
    print("either encoding is answered in either")


async def main():
    bus = await nats.connect(os.environ["NATS_URL"], user_credentials=os.environ["NATS_CREDS"])
    for wire in (Json, MsgPack):
        house = House(bus, wire)
        await runs(house)
        await asks_again(house)
        await asks_about(house)
    await crosses(bus)
    await bus.close()


asyncio.run(main())
