// Runs the trace_processor that the Perfetto UI carries, and speaks its RPC byte stream on stdin and stdout.
// Usage: node trace_processor.cjs <folder with engine_bundle.js and the .wasm files>
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const {Console} = require('node:console');

const folder = process.argv[2];
const stderrConsole = new Console(process.stderr); // stdout carries the replies and nothing else

// The bundle fetches its .wasm with a synchronous request, as a web worker may.
class FileRequest {
  open(_method, url) {
    this.file = path.join(folder, path.basename(url));
  }
  send() {
    this.status = 200;
    this.response = fs.readFileSync(this.file);
  }
}

// The bundle refuses to run in node, so it gets a world that looks like a web worker: no `process`. What
// WebAssembly throws and what it compares with `instanceof` must be of one realm, hence the outer classes.
const scope = {
  WorkerGlobalScope: class {},
  XMLHttpRequest: FileRequest,
  location: {href: 'file:///engine_bundle.js'},
  console: stderrConsole,
  Error,
  TextDecoder,
  TextEncoder,
  TypeError,
  Uint8Array,
  WebAssembly,
  performance,
  setTimeout,
};
scope.self = scope;
vm.createContext(scope);
const bundle = path.join(folder, 'engine_bundle.js');
vm.runInContext(fs.readFileSync(bundle, 'utf8'), scope, {filename: bundle});

const port = {postMessage: (reply) => process.stdout.write(reply)};
// One turn of the event loop later the bundle has its request buffer.
setImmediate(() => {
  scope.onmessage({data: port});
  process.stdin.on('data', (chunk) => port.onmessage({data: new Uint8Array(chunk)}));
});
