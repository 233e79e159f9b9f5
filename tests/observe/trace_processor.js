// Run Perfetto's trace processor, the WebAssembly of its UI, outside a browser.
//
//     node trace_processor.js DIRECTORY <REQUESTS >REPLIES
//
// DIRECTORY has engine_bundle.js and trace_processor*.wasm. Requests and replies are messages
// TraceProcessorRpcStream, one after the other.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");
const host = process;

host.on("uncaughtException", (error) => {
  fs.writeSync(2, String(error.message || error).slice(0, 4096) + "\n"); // not its line of 150 kB
  host.exit(1);
});
const directory = host.argv[2];
const requests = fs.readFileSync(0);
const bundle = path.join(directory, "engine_bundle.js");

// The bundle is a worker's script: it must find a worker's globals, and nothing of Node's.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
globalThis.location = new URL("http://bundle/engine_bundle.js");
globalThis.XMLHttpRequest = class {
  open(_method, url) {
    this.file = path.join(directory, path.basename(url));
  }
  send() {
    this.response = fs.readFileSync(this.file);
  }
};
globalThis.fetch = undefined;
globalThis.console = { ...console, log: console.error, warn: console.error };
globalThis.process = undefined;

vm.runInThisContext(fs.readFileSync(bundle, "utf8"), bundle);

function write(data) {
  while (data.length) {
    data = data.subarray(fs.writeSync(1, data));
  }
}

// The module is made while the script runs. What waits for that are promises, which come before a
// timer. Replies come while a request is handled.
setTimeout(() => {
  const port = { onmessage: null, postMessage: write };
  globalThis.onmessage({ data: port });
  port.onmessage({ data: new Uint8Array(requests) });
  host.exit(0);
}, 0);
