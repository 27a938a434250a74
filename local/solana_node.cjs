// Starts an embedded Solana runtime whose slots take so many milliseconds (400, as Solana's do, if not told), prints its RPC
// URL as one JSON line, and lives until its standard input ends.
'use strict';

const { Surfnet } = require('@solana/surfpool-linux-x64-gnu');

const net = Surfnet.startWithConfig({ offline: true, blockProductionMode: 'clock', slotTimeMs: Number(process.argv[2] ?? 400) });
console.log(JSON.stringify({ rpcUrl: net.rpcUrl }));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
