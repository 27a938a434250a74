// The npm package proxy-chain as its users run it: one server in one process.
// Arguments: the folder whose node_modules holds it, and a port.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, port] = process.argv.slice(2);
const found = createRequire(`${folder}/`).resolve('proxy-chain');
const { Server } = await import(pathToFileURL(found).href);
const server = new Server({ host: '127.0.0.1', port: Number(port) });
await server.listen();
