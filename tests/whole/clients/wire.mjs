// Works through the Node client: prints a line for each thing that it has seen hold.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const bus = await connect({
  servers: process.env.NATS_URL,
  authenticator: credsAuthenticator(readFileSync(process.env.NATS_CREDS)),
});

async function answer(verb, body) {
  return await bus.request(`lh.work.${verb}`, JSON.stringify(body), { timeout: 60_000 });
}

async function ask(verb, body) {
  const said = (await answer(verb, body)).json();
  assert.equal(said.error, undefined);
  return said;
}

async function follow(body, most = Infinity) {
  const said = [];
  const lines = await bus.requestMany("lh.work.follow", JSON.stringify(body), {
    strategy: "sentinel",
    maxWait: 60_000,
  });
  for await (const message of lines) {
    if (message.data.length === 0) break;
    said.push(message.json());
    if (said.length >= most) break;
    message.respond();
  }
  return said;
}

const written = (said) =>
  Buffer.concat(
    said
      .filter((one) => one.output?.stream === "stdout")
      .map(({ output: { bytes } }) =>
        typeof bytes === "string" ? Buffer.from(bytes) : Buffer.from(bytes.base64, "base64"),
      ),
  );

const done = await ask("run", { argv: ["sh", "-c", "echo out; echo err >&2; exit 3"] });
assert.deepEqual(
  [done.state, done.exit_code, done.stdout, done.stderr],
  ["failed", 3, "out\n", "err\n"],
);
console.log("run answers with output and exit code");

const bytes = Buffer.from([0, 255, 128]).toString("base64");
const echoed = await ask("run", { argv: ["cat"], stdin: { base64: bytes } });
assert.deepEqual(echoed.stdout, { base64: bytes });
console.log("any bytes go in and come out");

const { work } = await ask("submit", { argv: ["sh", "-c", "echo one; sleep 0.3; printf 'two\\377'"] });
const said = await follow({ work });
assert.deepEqual(written(said), Buffer.from("one\ntwo\xff", "latin1"));
assert.equal(said.at(-1).summary.state, "finished");
console.log("follow brings facts, output and the summary");

const head = await follow({ work }, 3);
const tail = await follow({ work, from: head.at(-1).cursor });
assert.deepEqual(written([...head, ...tail]), Buffer.from("one\ntwo\xff", "latin1"));
console.log("a cursor goes on where it was taken");

const refused = await answer("get", { work: "no such work" });
assert.equal(refused.headers.get("Nats-Service-Error-Code"), "404");
assert.equal(refused.json().error.code, "unknown_work");
console.log("a refusal has headers and a body");

await bus.close();
