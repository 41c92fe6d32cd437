// BullMQ on Node: the orders of process.py. NODE_PATH names the folder of its packages.
'use strict';
const fs = require('node:fs');
const { Queue, QueueEvents, Worker } = require('bullmq');

const order = { slot: 0, n: 0, bulk: false, first: 0, most_s: 60, idle: false, ...JSON.parse(process.argv[2]) };
const url = new URL(order.url);
const connection = { host: url.hostname, port: Number(url.port), db: Number(url.pathname.slice(1) || 0), maxRetriesPerRequest: null };
const keep = { removeOnComplete: false };
const QUEUE = 'bench', WARM_UP = 20, PAUSE_MS = 2, BULK = 1000;
const SLOT_BYTES = 24, SLOTS = 8, PAYLOAD_BYTES = 300; // as in probe.py

const nowNs = () => process.hrtime.bigint(); // CLOCK_MONOTONIC
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Probe {
  constructor() {
    this.file = fs.openSync(order.probe, 'r+');
    this.slot = Buffer.alloc(SLOT_BYTES);
    this.all = Buffer.alloc(SLOT_BYTES * SLOTS);
    this.bodies = 0;
    this.first = 0n;
    this.isDue = false;
  }

  // Node maps no files. While it is busy the count is written once a loop turn, so that it costs as little as in Python.
  tick() {
    this.last = nowNs();
    this.bodies += 1;
    this.first = this.first || this.last;
    if (order.idle) return this.write();
    if (this.isDue) return;
    this.isDue = true;
    setImmediate(() => this.write());
  }

  write() {
    this.isDue = false;
    this.slot.writeBigInt64LE(BigInt(this.bodies), 0);
    this.slot.writeBigInt64LE(this.first, 8);
    this.slot.writeBigInt64LE(this.last, 16);
    fs.writeSync(this.file, this.slot, 0, SLOT_BYTES, order.slot * SLOT_BYTES);
  }

  lastNs() {
    fs.readSync(this.file, this.all, 0, this.all.length, 0);
    let last = 0n;
    for (let at = 16; at < this.all.length; at += SLOT_BYTES) {
      const found = this.all.readBigInt64LE(at);
      if (found > last) last = found;
    }
    return last;
  }
}

function makePayload(number) {
  const payload = { n: String(number).padStart(9, '0'), kind: 'finding', section: 'research', body: '' };
  payload.body = 'x'.repeat(PAYLOAD_BYTES - JSON.stringify(payload).length);
  return payload;
}

function work() {
  const probe = new Probe();
  const body = async () => {
    probe.tick();
    return 1;
  };
  process.on('SIGTERM', () => process.exit(0));
  new Worker(QUEUE, body, { connection, concurrency: 50, removeOnComplete: { count: -1 } });
}

async function submit() {
  const queue = new Queue(QUEUE, { connection });
  await queue.waitUntilReady();
  const payloads = Array.from({ length: order.n }, (_, n) => makePayload(order.first + n));
  const began = nowNs();
  if (order.bulk) {
    for (let start = 0; start < order.n; start += BULK) {
      await queue.addBulk(payloads.slice(start, start + BULK).map((data) => ({ name: 'noop', data, opts: keep })));
    }
  } else {
    for (const payload of payloads) await queue.add('noop', payload, keep);
  }
  return { seconds: Number(nowNs() - began) / 1e9 };
}

async function latency() {
  const probe = new Probe(), starts = [], results = [];
  const queue = new Queue(QUEUE, { connection }), events = new QueueEvents(QUEUE, { connection });
  await Promise.all([queue.waitUntilReady(), events.waitUntilReady()]);
  let ends = Infinity;
  for (let n = -WARM_UP; n < order.n && Date.now() < ends; n += 1) {
    if (n === 0) ends = Date.now() + order.most_s * 1000;
    const payload = makePayload(order.first + n + WARM_UP), asked = nowNs();
    const job = await queue.add('noop', payload, keep);
    await job.waitUntilFinished(events);
    const seen = nowNs();
    if (n >= 0) {
      starts.push(Number(probe.lastNs() - asked) / 1000);
      results.push(Number(seen - asked) / 1000);
    }
    await pause(PAUSE_MS);
  }
  return { start_us: starts, result_us: results };
}

if (order.verb === 'work') {
  work();
} else {
  (order.verb === 'submit' ? submit() : latency()).then(
    (answer) => process.stdout.write(`\nPEER ${JSON.stringify(answer)}\n`, () => process.exit(0)),
    (error) => process.stderr.write(`${error.stack}\n`, () => process.exit(1)),
  );
}
